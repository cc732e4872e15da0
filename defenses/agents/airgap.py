"""AirGapAgent: a minimiser picks the data before any third party speaks; the talker sees nothing else.

Two calls. The minimiser is given the trusted context and the user's data, decides which fields the task needs,
and is cached for each user and task. The conversational agent talks to the third party with those fields alone,
so that no words can get more out of it. If it wants more, its user is asked on the trusted side, and is told the
field and the task but not the third party's reasons; a simulated user approves what the rule table allows, and
errs with the probability `user_error`. What only came with the user's help does not count for the metric `utility`.

What the minimiser decides is kept for each user and task and shared by all cells of a store; its calls are booked
in the cell that made them, under `cost.other_queries`.

Minimisers: `model` (the agent's own model), BACKEND:NAME (another one), `rules` (the oracle, which is told the
rule table) and `random` (as many fields as the oracle, drawn), the last two as bounds.

Source: [bagdasarian2024airgap], abstract and third-party summaries; its prompts are not public, so ours are
our own. Text that a third party gets into the task's description does reach the minimiser: that is the attack
`context-hijack-adaptive --strategy poisoned-task`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from redteam.core.config import check_ranges, knob
from redteam.core.context import Context
from redteam.core.errors import ConfigError
from redteam.core.hashing import digest_json
from redteam.core.seeding import SeedPath
from redteam.core.types import Spec, TargetKind, ThreatModel
from redteam.data.words import Draws
from redteam.llm.language import Sampling
from redteam.threats.agents.minimisers import Minimiser, ModelMinimiser, Need, RandomMinimiser, RuleMinimiser
from redteam.threats.agents.models import open_agent_model
from redteam.threats.agents.nouns import Agent, AgentReply, Dialogue, Minimised, RuleTable, TrustedContext
from redteam.threats.agents.target import AgentTarget

DENIED = "I'm sorry, I can't help with that piece of information."


@dataclass(frozen=True, slots=True, kw_only=True)
class AirGapConfig:
    """Who minimises, and what happens when the talker wants more."""

    minimiser: str = knob("model", "model (the agent's own), rules, random, or BACKEND:NAME")
    values: bool = knob(True, "whether a model minimiser sees the data, or only what they are called")
    ask: Literal["list", "each"] = knob(
        "list", "a model minimiser lists the fields as JSON, or answers yes or no to each"
    )
    repairs: int = knob(2, "how often a minimiser that returns no JSON list is asked again", low=0, high=10)
    max_tokens: int = knob(256, "length of a model minimiser's answer", low=1)
    escalate: bool = knob(True, "whether the talker may ask the user for more")
    user_error: float = knob(
        0.0, "probability that the simulated user decides against the rule table", low=0, high=1
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.minimiser not in ("model", "rules", "random") and ":" not in self.minimiser:
            raise ConfigError(
                f"minimiser: expected model, rules, random or BACKEND:NAME, got '{self.minimiser}'"
            )


@dataclass(frozen=True)
class User:
    """The user, when asked. Sees the task and the field, never the conversation."""

    rules: RuleTable
    error: float
    seeds: SeedPath

    def approves(self, context: TrustedContext, name: str, data: Mapping[str, str]) -> bool:
        """Whether the agent may have a field. What the user does not have, or does not know, is not approved."""
        if name not in data:
            return False
        right = self.rules.labels[context.task.id].get(name) == "allowed"
        erred = Draws(self.seeds.child(context.task.id, name, digest_json(dict(data)))).chance(self.error)
        return right != erred


class _FailedError(Exception):
    """The minimiser's model gave no answer to some of what it was asked."""

    def __init__(self, found: list[Minimised]) -> None:
        super().__init__("the minimiser gave no answer")
        self.found = found


@dataclass
class AirGap:
    """An agent behind an air gap. Also `redteam.threats.agents.nouns.Minimising`.

    known: what is decided, by trusted context and data. population: what is decided together, the first time.
    """

    agent: Agent
    minimiser: Minimiser
    user: User | None
    ctx: Context
    population: Sequence[Need]
    kind: TargetKind = "agent"
    known: dict[str, Minimised] = field(default_factory=dict)

    def fingerprint(self) -> dict[str, Any]:
        """The minimiser's, the user's and the agent's."""
        user = {"error": self.user.error, "rules": self.user.rules.digest} if self.user else None
        return {
            "defense": "airgap", "minimiser": self.minimiser.fingerprint(), "user": user,
            "agent": self.agent.fingerprint(),
        }  # fmt: skip

    def minimise(self, needs: Sequence[Need]) -> list[Minimised]:
        """What remains for each trusted context and user; decided once."""
        keys = [_key(need) for need in needs]
        missing = {k: need for k, need in zip(keys, needs, strict=True) if k not in self.known}
        if missing:
            planned = {_key(need): need for need in self.population}
            # The whole plan at once, so that the answer does not depend on who asks first.
            wanted = [missing] if missing.keys() - planned.keys() else []
            for part in ([planned] if missing.keys() & planned.keys() else []) + wanted:
                self.known |= self._decide({k: n for k, n in part.items() if k not in self.known})
        return [self.known[k] for k in keys]

    def _decide(self, needs: Mapping[str, Need]) -> dict[str, Minimised]:
        if not needs:
            return {}
        key = {"minimiser": self.minimiser.fingerprint(), "needs": list(needs)}

        def make() -> dict[str, np.ndarray]:
            found = self.minimiser.minimise(list(needs.values()))
            if any(m.outcome == "error" for m in found):
                raise _FailedError(found)
            return _pack(found)

        try:
            found = _unpack(self.ctx.stage("minimise", key, make))
        except _FailedError as failed:  # holds for this run, and is not kept for the next
            found = failed.found
        return dict(zip(needs, found, strict=True))

    def reply(self, dialogues: Sequence[Dialogue]) -> list[AgentReply]:
        """The talker's reply on what remains; where it asked for more and the user agreed, its second reply."""
        remains = self.minimise([(d.context, d.data) for d in dialogues])
        seen = [_reduced(d, m, self.user is not None) for d, m in zip(dialogues, remains, strict=True)]
        replies = self.agent.reply(seen)
        if self.user is None:
            return replies
        again: list[int] = []
        for i, (whole, reply) in enumerate(zip(dialogues, replies, strict=True)):
            new = [f for f in reply.requested if f not in seen[i].data]
            approved = tuple(f for f in new if self.user.approves(whole.context, f, whole.data))
            text = reply.text or (DENIED if reply.requested and reply.finish == "stop" else "")
            replies[i] = replace(reply, approved=approved, text=text)
            if approved:
                seen[i] = replace(seen[i], data={**seen[i].data, **{f: whole.data[f] for f in approved}})
                again.append(i)
        for i, second in zip(again, self.agent.reply([seen[i] for i in again]) if again else [], strict=True):
            first = replies[i]
            replies[i] = replace(
                second, text=second.text or (DENIED if second.finish == "stop" else ""), approved=first.approved,
                requested=tuple(dict.fromkeys((*first.requested, *second.requested))),
                actions=(*first.actions, *second.actions),
            )  # fmt: skip
        return replies


def _reduced(dialogue: Dialogue, minimised: Minimised, may_request: bool) -> Dialogue:
    """The conversation with only what remains, and what the user approved earlier in it."""
    approved = {f for t in dialogue.history if t.party == "agent" for f in t.approved}
    data = {f: t for f, t in dialogue.data.items() if f in minimised.fields or f in approved}
    return replace(dialogue, data=data, may_request=may_request)


def _key(need: Need) -> str:
    context, data = need
    task = context.task
    told = [task.id, task.name, task.description, task.recipient, task.directive, context.note]
    return digest_json([told, list(data.items())])


def _pack(found: Sequence[Minimised]) -> dict[str, np.ndarray]:
    rows = [[list(m.fields), m.outcome, m.attempts, m.raw] for m in found]
    return {"json": np.frombuffer(json.dumps(rows).encode(), np.uint8)}


def _unpack(arrays: Mapping[str, np.ndarray]) -> list[Minimised]:
    rows = json.loads(arrays["json"].tobytes())
    return [Minimised(fields=tuple(f), outcome=o, attempts=a, raw=r) for f, o, a, r in rows]


def minimiser_of(target: AgentTarget, config: AirGapConfig, ctx: Context) -> Minimiser:
    """The minimiser that the config names."""
    if config.minimiser == "rules":
        return RuleMinimiser(target.dataset.rules)
    if config.minimiser == "random":
        return RandomMinimiser(target.dataset.rules, ctx.seeds.child("random-minimiser"))
    name = target.config.model if config.minimiser == "model" else config.minimiser
    model = open_agent_model(replace(target.config, model=name), ctx, role="defense")
    words = {f.name: f.words for f in target.dataset.fields}
    return ModelMinimiser(
        model, Sampling(max_tokens=config.max_tokens), words, repairs=config.repairs, values=config.values,
        each=config.ask == "each",
    )  # fmt: skip


def run(target: AgentTarget, config: AirGapConfig, ctx: Context) -> AgentTarget:
    """The target, its agent behind the air gap."""
    user = User(target.dataset.rules, config.user_error, ctx.seeds.child("user")) if config.escalate else None
    gap = AirGap(target.agent, minimiser_of(target, config, ctx), user, ctx, target.needs)
    return target.behind(gap)


def told(config: AirGapConfig) -> tuple[str, ...]:
    """What the defence knows that nobody would."""
    found = {"rules": ("rule-table",), "random": ("rule-table-sizes",)}.get(config.minimiser, ())
    return (*found, *(("user-follows-rule-table",) if config.escalate else ()))


SPEC = Spec(
    name="airgap",
    kind="defense",
    version="1",
    config=AirGapConfig,
    run=run,
    source="bagdasarian2024airgap",
    threat=ThreatModel(
        kind="agent-privacy",
        target="agent",
        access=("trusted-context", "user-data"),
        budget="one call of the minimiser for each user and task",
        knowledge=("the task and the recipient", "nothing of the third party"),
        goal="nothing that the task does not need can be talked out of the agent",
    ),
    variants=({"minimiser": "model"}, {"minimiser": "rules"}, {"minimiser": "random"}),
    baselines=("privacy-prompt",),
    oracle=told,
)
