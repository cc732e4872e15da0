"""The agent target: an agent, the users whose data it holds, and the questions that third parties put to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from redteam.core.config import build, check_ranges, knob
from redteam.core.context import Context
from redteam.core.errors import ConfigError, UnknownNameError
from redteam.core.types import Spec, TargetKind
from redteam.llm.language import Sampling
from redteam.threats.agents.conversational import ConversationalAgent, Interface
from redteam.threats.agents.models import ChatOptions, open_agent_model
from redteam.threats.agents.nouns import Agent, AgentDataset, Question, TrustedContext
from redteam.threats.agents.questions import plan_questions


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig(ChatOptions):
    """The agent's model, how it gets at the data, and which questions are asked."""

    interface: Interface = knob(
        "text",
        "text: the data stand in the system message; tools: looked up by a function in the OpenAI format",
    )
    max_tokens: int = knob(64, "length of one message of the agent", low=1)
    temperature: float = knob(0.0, "of the agent's sampling; 0 is greedy", low=0)
    profiles: int | None = knob(10, "how many of the data set's users, from the first; none: all", low=1)
    tasks: tuple[str, ...] | None = knob(None, "ids of the tasks; none: all of the data set's")
    fields: int | None = knob(
        None, "questions for each user and task, half of them on allowed fields; none: every field", low=2
    )
    judge: str | None = knob(None, "a model that also says whether a field was revealed; none: no judge")

    def __post_init__(self) -> None:
        ChatOptions.__post_init__(self)
        check_ranges(self)


@dataclass(frozen=True)
class AgentTarget:
    """An agent, opened when it is first asked, and the questions that are put to it.

    undefended: the agent as it is; `agent`: behind its defences, if it has any.
    """

    dataset: AgentDataset
    config: AgentConfig
    ctx: Context
    kind: TargetKind = "agent"
    defended: Agent | None = field(default=None, compare=False)

    @cached_property
    def undefended(self) -> Agent:
        """The agent without defences."""
        c = self.config
        model = open_agent_model(c, self.ctx)
        return ConversationalAgent(
            model, Sampling(max_tokens=c.max_tokens, temperature=c.temperature), c.interface
        )

    @property
    def agent(self) -> Agent:
        """What attacks and the scorer talk to."""
        return self.defended or self.undefended

    def behind(self, agent: Agent) -> AgentTarget:
        """The same target, its agent behind a defence. What is open stays open."""
        out = replace(self, defended=agent)
        out.__dict__["undefended"] = self.undefended
        return out

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        """What is asked, in order. An attacker may see them; they carry no label."""
        return plan_questions(self.dataset, self.config.profiles, self.config.tasks, self.config.fields)

    @property
    def needs(self) -> list[tuple[TrustedContext, Mapping[str, str]]]:
        """Each trusted context that is asked about, with its user's data."""
        pairs = dict.fromkeys((q.profile, q.task) for q in self.questions)
        return [
            (
                TrustedContext(task=self.dataset.task(task)),
                {name: v.text for name, v in self.dataset.profile(profile).values.items()},
            )
            for profile, task in pairs
        ]

    def fingerprint(self) -> dict[str, Any]:
        """Everything that decides the outcome, as plain JSON values."""
        return {"target": SPEC.name, "data": self.dataset.digest, "agent": self.agent.fingerprint()}


def pinned(target: AgentTarget) -> Mapping[str, str]:
    """What the config names but does not hold: the digest of a local model, and that of the rule table."""
    from redteam.llm.opening import content_named

    content = content_named(target.config.model)
    return {"rules": target.dataset.rules.digest, **({"content": content} if content else {})}


def configure(dataset: AgentDataset, *layers: Mapping[str, Any]) -> AgentConfig:
    """The default target with `layers` of settings laid over it, the last one on top.

    All but the last are presets, whose number of users yields to what the data set has.

    Raises:
        ConfigError: an unknown setting, one out of range, or more users than there are.
        UnknownNameError: no such task.
    """
    config = AgentConfig()
    for layer in layers:
        config = build(AgentConfig, layer, base=config, where="target")
    asked, have = config.profiles, len(dataset.profiles)
    if asked is not None and asked > have:
        if any("profiles" in layer for layer in layers[-1:]):
            raise ConfigError(
                f"profiles: expected at most {have}, as many users as '{dataset.name}' has, got {asked}"
            )
        config = replace(config, profiles=None)
    for task in config.tasks or ():
        if task not in {t.id for t in dataset.tasks}:
            raise UnknownNameError("task", task, [t.id for t in dataset.tasks])
    return config


SPEC = Spec(
    name="agent",
    kind="target",
    version="1",
    config=AgentConfig,
    run=AgentTarget,
    source="bagdasarian2024airgap",
)
