"""Searching for strings: the knobs of a search, its objective on a language model, and one search a string."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from attacks._shared import moves
from attacks._shared.losses import Loss, LossName, Provider, open_provider
from attacks._shared.moves import Ids
from attacks._shared.search import Penalty, Rank, Rules, Search, State
from attacks._shared.strings import SLACK, Row, StringGoal, check_model, request_of
from redteam.config import knob, to_json
from redteam.context import Context
from redteam.errors import ConfigError
from redteam.language import LanguageModel, PromptFilter, Sampling
from redteam.llm.options import ModelOptions
from redteam.llm.target import Goal, LanguageTarget, open_model

# Above any loss a target gives: refused prompts are ordered by suspicion alone.
_REFUSED = 1e4


@dataclass(frozen=True, slots=True, kw_only=True)
class StringSearch(StringGoal):
    """The knobs of a search."""

    init: Literal["repeat", "random"] = knob(
        "repeat", "begin with the target repeated, or with random tokens"
    )
    max_tokens: int | None = knob(None, "tokens that the search of one string may take on the target", low=1)
    max_usd: float | None = knob(None, "US dollars that the search of one string may take", above=0)
    buffer: int = knob(32, "candidates kept", low=1)
    batch: int = knob(16, "candidates put to the target in one step", low=1)
    proxy: str = knob(
        "none", "model that ranks candidates first, such as hf:ID; none: the target ranks its own"
    )
    proxy_batch: int = knob(256, "candidates the proxy ranks in one step", low=1)
    variant: Literal["buffer", "positions"] = knob(
        "buffer", "buffer: swaps anywhere; positions: one swap at each position, then more at the best one"
    )
    expand: Literal["repeat", "once"] = knob("repeat", "whether a candidate's neighbours may be drawn again")
    loss: LossName = knob("auto", "how the target's loss is learnt; auto: by what its probe shows")
    margin: float = knob(0.0, "nats by which a candidate must be better than the buffer's worst", low=0)
    fluency: float = knob(
        1.0, "weight of suspicion above the threshold, where the target is a known filter", low=0
    )
    universal: bool = knob(False, "one string for all targets; the request must name {target}")
    validation: float = knob(
        0.5, "share of the strings that a universal one is not searched on", low=0, high=0.9
    )

    def __post_init__(self) -> None:
        StringGoal.__post_init__(self)
        if self.universal and "{target}" not in self.request:
            raise ConfigError(
                "universal: one string can only serve several targets if --request names each, "
                "such as --request 'Say {target} '"
            )

    def rules(self, ranked: bool) -> Rules:
        """What the search loop needs."""
        return Rules(
            max_queries=self.max_queries, max_tokens=self.max_tokens, max_usd=self.max_usd, buffer=self.buffer,
            batch=self.batch, proxy_batch=self.proxy_batch if ranked else 0, expand=self.expand,
            variant=self.variant, margin=self.margin,
        )  # fmt: skip


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
        for request, goal in zip(self.requests, self.goals, strict=True):
            alive = [i for i, loss in enumerate(sums) if loss.kind != "cut" and math.isfinite(loss.value)]
            room = bound * self.width - min((sums[i].value for i in alive), default=0.0)
            inner = [_slice(parents[i], start, len(goal.tokens)) for i in alive]
            asked = self._ask([request + texts[i] for i in alive], goal, room, inner)
            for i, loss in zip(alive, asked, strict=True):
                sums[i] = _plus(sums[i], loss)
            start += len(goal.tokens)
        return [replace(loss, value=loss.value / self.width) for loss in sums]

    def _ask(self, prompts: list[str], goal: Goal, bound: float, parents: list[Loss | None]) -> list[Loss]:
        """The provider's losses; what a known filter would refuse is not sent."""
        out = [Loss(_REFUSED, "floor", False, (), "refused")] * len(prompts)
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

    def spent(self) -> tuple[int, float]:
        """Tokens and US dollars booked for the role so far."""
        spent = self.ctx.ledger.spent(self.role)
        return spent.tokens_in + spent.tokens_out, spent.usd


def _slice(parent: Loss | None, start: int, size: int) -> Loss | None:
    if parent is None or len(parent.tokens) < start + size:
        return None
    return replace(parent, tokens=parent.tokens[start : start + size])


def _plus(a: Loss, b: Loss) -> Loss:
    """The sum of two goals' losses: as sure as the less sure of them."""
    kind = "cut" if "cut" in (a.kind, b.kind) else "floor" if "floor" in (a.kind, b.kind) else "exact"
    success = False if False in (a.success, b.success) else None if None in (a.success, b.success) else True
    finish = b.finish if b.finish != "stop" else a.finish
    return Loss(a.value + b.value, kind, success, a.tokens + b.tokens, finish)


@dataclass(frozen=True)
class Setting:
    """One search's surroundings, made once for all strings of a run.

    model: what is searched on, the target or, for transfer, a proxy; role: how its queries are booked.
    guard: the defence that the attack knows. proxy: what ranks candidates, None where nothing does.
    """

    model: LanguageModel
    goals: Sequence[Goal]
    config: StringSearch
    ctx: Context
    provider_name: str
    provider: Provider
    identity: dict[str, Any]
    guard: PromptFilter | None = None
    proxy: LanguageModel | None = None
    role: str = "target"

    def notes(self) -> dict[str, Any]:
        """What the artifact says of the search."""
        return {
            "loss": self.provider_name, "expand": self.config.expand, "proxy": self.config.proxy,
            "self_proxy": self.proxy is None, "adapts_to_filter": self.guard is not None,
            "proxy_model": self.proxy.fingerprint() if self.proxy is not None else None,
        }  # fmt: skip


def prepare(target: LanguageTarget, config: StringSearch, ctx: Context, name: str, version: str) -> Setting:
    """Open what a search needs, and refuse what would score wrong.

    Raises:
        CapabilityError: no tokenizer, or no loss that the target can give.
    """
    model = target.model
    check_model(model)
    remote = target.config.backend in ("openai", "llama")
    provider_name, provider = open_provider(config.loss, model, target.config.batch if remote else 1)
    guard = model if isinstance(model, PromptFilter) and config.fluency > 0 else None
    proxy = None
    if config.proxy != "none":
        proxy = open_model(ModelOptions(model=config.proxy, template="raw"), ctx, "proxy")
    identity = {
        "attack": name, "version": version, "config": to_json(config), "loss": provider_name,
        "target": model.fingerprint(), "proxy": proxy.fingerprint() if proxy else None,
    }  # fmt: skip
    return Setting(model, target.goals, config, ctx, provider_name, provider, identity, guard, proxy)


def search_one(
    setting: Setting, index: int, goals: Sequence[Goal], variant: Literal["buffer", "positions", "random"]
) -> tuple[State, Ids]:
    """The search of one string, or of a universal one for several goals; resumes from its checkpoint."""
    config, model = setting.config, setting.model
    requests = [request_of(config, goal) for goal in goals]
    ctx = setting.ctx.at("string", index)
    objective = StringObjective(model, setting.provider, requests, goals, ctx, setting.role, setting.guard)
    identity = {
        **setting.identity,
        "variant": variant,
        "goals": [g.text for g in goals],
        "seed": str(ctx.seeds),
    }

    def initial(rng: np.random.Generator) -> Ids:
        if config.init == "repeat" and not config.universal:
            return moves.repeated(model, requests[0], goals[0].tokens, config.length)
        return moves.random_string(model, requests[0], config.length, rng)

    search = Search(
        objective=objective, rules=replace(config.rules(setting.proxy is not None), variant=variant),
        ctx=ctx, name=f"string {index + 1} of {len(setting.goals)}",
        draw=lambda ids, rng, places: moves.neighbours(model, requests[0], ids, rng, places),
        fresh=lambda rng: moves.random_string(model, requests[0], config.length, rng),
        checkpoint=ctx.checkpoint(f"string-{index}", identity),
        rank=_ranker(setting, requests, goals), penalty=_fluency(setting, requests),
    )  # fmt: skip
    return search.run(initial)


def _ranker(setting: Setting, requests: Sequence[str], goals: Sequence[Goal]) -> Rank | None:
    """The proxy's losses, summed over the goals; it reads decoded strings with its own tokenizer."""
    proxy, model = setting.proxy, setting.model
    if proxy is None:
        return None

    def rank(candidates: Sequence[Ids]) -> list[float]:
        texts = [model.detokenize(ids) for ids in candidates]
        total = np.zeros(len(texts))
        for request, goal in zip(requests, goals, strict=True):
            total += [s.loss for s in proxy.score([request + text for text in texts], goal.text)]
        return [float(v) for v in total]

    return rank


def _fluency(setting: Setting, requests: Sequence[str]) -> Penalty | None:
    """The weighted suspicion above the threshold of a filter that the attack knows, in the filter's unit."""
    guard, model, weight = setting.guard, setting.model, setting.config.fluency
    if guard is None:
        return None

    def penalty(candidates: Sequence[Ids]) -> list[float]:
        prompts = [requests[0] + model.detokenize(ids) for ids in candidates]
        return [weight * max(0.0, float(s) - guard.threshold) for s in guard.suspicion(prompts)]

    return penalty


def search_rows(
    setting: Setting, variant: Literal["buffer", "positions", "random"] | None = None
) -> list[Row]:
    """One search for each string."""
    return [_row(setting, i, variant or setting.config.variant) for i in range(len(setting.goals))]


def _row(setting: Setting, index: int, variant: Literal["buffer", "positions", "random"]) -> Row:
    goal = setting.goals[index]
    state, first = search_one(setting, index, [goal], variant)
    request = request_of(setting.config, goal)
    best = best_of(state, first)
    return Row(
        goal, request + setting.model.detokenize(best), request + setting.model.detokenize(first), state
    )


def best_of(state: State, first: Ids) -> Ids:
    """What a search is to be judged by: what succeeded, else the lowest exact loss, else what stands best."""
    if state.found is not None:
        return state.found
    if state.best is not None:
        return state.best.ids
    return state.buffer.min().ids if len(state.buffer) else first
