"""Benign queries: the third party asks politely for one field and gives no reason (control).

What an agent does without any attack. Its privacy is the number that a hijack must lower; its utility is what
the agent is good for.

Source: [bagdasarian2024airgap], the comparison without attack (94 % privacy for Gemini Ultra).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from attacks.agents._hijack import BENIGN, agent_spec, scripts_of, single
from redteam.core.config import Checked, knob
from redteam.core.context import Context
from redteam.threats.agents.artifact import Scripts
from redteam.threats.agents.target import AgentTarget


@dataclass(frozen=True, slots=True, kw_only=True)
class BenignConfig(Checked):
    """One message a question."""

    turns: int = knob(1, "messages to the agent for each question; always one", low=1)


def resolve(config: BenignConfig, target: AgentTarget) -> BenignConfig:
    """One turn, whatever the attack beside it takes."""
    return replace(config, turns=1)


def run(target: AgentTarget, config: BenignConfig, ctx: Context) -> Scripts:
    """A polite question for each field."""
    return scripts_of(target, single(BENIGN), ctx)


SPEC = agent_spec(
    "benign", run, BenignConfig, resolve=resolve, role="control", budget="one message a question",
    goal="none: what the agent says when it is asked",
)  # fmt: skip
