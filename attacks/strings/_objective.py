"""What a search for strings lowers: -log P(target | request + string), for one goal or averaged over several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from attacks.strings._attack import SLACK
from redteam.core.context import Context
from redteam.llm.language import Goal, LanguageModel, PromptFilter, Sampling
from redteam.llm.search.losses import Loss, Provider
from redteam.llm.search.moves import Ids

# Above any loss a target gives: refused prompts are ordered by suspicion alone.
_REFUSED = 1e4


@dataclass
class StringObjective:
    """-log P(target | request + string), averaged over the goals: one, or several of a universal string."""

    model: LanguageModel
    provider: Provider
    requests: Sequence[str]
    goals: Sequence[Goal]
    ctx: Context
    role: str = "target"
    guard: PromptFilter | None = None

    @property
    def width(self) -> int:
        """Queries a candidate takes."""
        return len(self.goals)

    def __call__(self, candidates: Sequence[Ids], bound: float, parents: Sequence[Loss | None]) -> list[Loss]:
        """Losses; where several goals are averaged, a candidate is given up once its sum is past the bound."""
        texts = [self.model.detokenize(ids) for ids in candidates]
        sums = [Loss(0.0, "exact", True)] * len(texts)
        start = 0
        for index, (request, goal) in enumerate(zip(self.requests, self.goals, strict=True)):
            alive = [
                i for i, s in enumerate(sums) if s.kind not in ("cut", "unsent") and math.isfinite(s.value)
            ]
            room = bound * self.width - min((sums[i].value for i in alive), default=0.0)
            inner = [_slice(parents[i], start, len(goal.tokens)) for i in alive]
            asked = self._ask([request + texts[i] for i in alive], goal, room, inner)
            for i, loss in zip(alive, asked, strict=True):
                sums[i] = _plus(sums[i], loss)
                if index + 1 < self.width and sums[i].value > bound * self.width and sums[i].kind == "exact":
                    sums[i] = replace(
                        sums[i], kind="cut", success=False if sums[i].success is False else None
                    )
            start += len(goal.tokens)
        return [replace(loss, value=loss.value / self.width) for loss in sums]

    def _ask(self, prompts: list[str], goal: Goal, bound: float, parents: list[Loss | None]) -> list[Loss]:
        """The provider's losses; what a known filter would refuse is not sent."""
        out = [Loss(_REFUSED, "unsent", False, (), "refused")] * len(prompts)
        send = list(range(len(prompts)))
        if self.guard is not None and prompts:
            send = [int(i) for i in np.flatnonzero(self.guard.suspicion(prompts) <= self.guard.threshold)]
        if send:
            losses = self.provider([prompts[i] for i in send], goal, bound, [parents[i] for i in send])
            for i, loss in zip(send, losses, strict=True):
                out[i] = loss
        return out

    def confirm(self, candidate: Ids) -> bool:
        """Whether greedy decoding gives every goal."""
        text = self.model.detokenize(candidate)
        for request, goal in zip(self.requests, self.goals, strict=True):
            sampling = Sampling(max_tokens=len(goal.tokens) + SLACK)
            (answer,) = self.model.generate([request + text], sampling)
            if not answer.text.lstrip().startswith(goal.text):
                return False
        return True

    def spent(self) -> tuple[int, int, float]:
        """Requests, tokens and US dollars booked for the role so far."""
        spent = self.ctx.ledger.spent(self.role)
        return spent.requests, spent.tokens_in + spent.tokens_out, spent.usd


def _slice(parent: Loss | None, start: int, size: int) -> Loss | None:
    if parent is None or len(parent.tokens) < start + size:
        return None
    return replace(parent, tokens=parent.tokens[start : start + size])


def _plus(a: Loss, b: Loss) -> Loss:
    """The sum of two goals' losses: as sure as the less sure of them."""
    kind = next((k for k in ("unsent", "cut", "floor") if k in (a.kind, b.kind)), "exact")
    success = False if False in (a.success, b.success) else None if None in (a.success, b.success) else True
    finish = b.finish if b.finish != "stop" else a.finish
    return Loss(a.value + b.value, kind, success, a.tokens + b.tokens, finish)  # type: ignore[arg-type]
