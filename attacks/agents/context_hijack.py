"""Context hijacking: a third party forges the context, so that an agent shares what its task does not allow.

Three strategies. `preserving`: one message that stays in the task and gives a plausible reason (a new policy, a
second file). `agnostic`: one message that replaces the context and works for any field (an emergency, an
override). `multi-turn`: a conversation that opens harmlessly, then forges a reason, then presses. Without
`--strategy` each of them is a run of its own. The scripts are fixed beforehand: nothing here depends on what
the agent says, so a defended agent meets the same words.

Source: [bagdasarian2024airgap]. The two kinds of single queries are its own; its prompts are not public, so the
words here are ours. Multi-turn attacks are in its threat model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from attacks.agents._hijack import (
    AGNOSTIC,
    FORGED,
    OPENERS,
    PRESERVING,
    PRESSED,
    agent_spec,
    scripts_of,
    single,
    steps,
)
from redteam.core.config import Checked, knob
from redteam.core.context import Context
from redteam.threats.agents.artifact import Scripts
from redteam.threats.agents.target import AgentTarget

Strategy = Literal["preserving", "agnostic", "multi-turn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HijackConfig(Checked):
    """How the context is forged."""

    strategy: Strategy = knob(
        "preserving", "stay in the task, replace it, or lead up to it; none given: all three"
    )
    turns: int = knob(
        3,
        "messages to the agent for each question; multi-turn alone takes more than one",
        low=1,
        high=20,
    )


def resolve(config: HijackConfig, target: AgentTarget) -> HijackConfig:
    """Single queries have one turn."""
    return config if config.strategy == "multi-turn" else replace(config, turns=1)


def run(target: AgentTarget, config: HijackConfig, ctx: Context) -> Scripts:
    """A script for every planned question."""
    making: dict[str, Any] = {
        "preserving": single(PRESERVING),
        "agnostic": single(AGNOSTIC),
        "multi-turn": steps((OPENERS, FORGED, PRESSED), config.turns),
    }
    return scripts_of(target, making[config.strategy], ctx)


SPEC = agent_spec(
    "context-hijack", run, HijackConfig, resolve=resolve, controls=("benign",),
    goal="the agent says a value that its task does not allow",
    variants=({"strategy": "preserving"}, {"strategy": "agnostic"}, {"strategy": "multi-turn"}),
)  # fmt: skip
