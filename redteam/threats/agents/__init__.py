"""Agents: a third party makes an assistant give away what its user would not.

An agent holds a user's data and acts in a task; a third party asks for one field after another and lies about the
context. Which field may flow in which task is a reviewed rule table. A defence minimises what the agent sees
(`airgap`) or tells it to be careful. The scorer plays every script again, looks for each value in plain, encoded and
derived form, and puts benign questions beside. Headline metrics: `privacy` and `utility`.
"""

from pathlib import Path

from redteam.core.threat import Command, TargetEntry, Threat
from redteam.llm.backends import AGENT_BACKENDS
from redteam.threats.agents.data.names import AGENTS, claimed

THREAT = Threat(
    name="agents",
    targets=(
        TargetEntry(
            kind="agent", threat="agent-privacy", target="agent", artifact="scripts",
            type="redteam.threats.agents.seam:AGENT",
        ),
    ),
    board=Path(__file__).with_name("board.toml"),
    datasets=AGENTS,
    claims=claimed,
    lists={"Models of agents alone": {f"{name}:": text for name, text in AGENT_BACKENDS.items()}},
    commands={
        "norms": Command(
            at="redteam.threats.agents.commands:norms", help="Judge a run of agents again under other norms."
        ),
        "export agents": Command(
            at="redteam.threats.agents.commands:export", help="Write users, tasks and rules as JSON lines."
        ),
    },
    scoring="redteam.threats.agents.norms:SCORING",
)  # fmt: skip
