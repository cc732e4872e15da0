"""Searching for strings: the knobs of a search, its objective on a language model, and one search a string."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from attacks.strings._attack import VERSION, Row, StringGoal, assemble, check_model, request_of
from attacks.strings._objective import StringObjective
from redteam.core.config import knob, to_json
from redteam.core.context import Context
from redteam.core.errors import ConfigError
from redteam.llm.language import Goal, LanguageModel, PromptFilter
from redteam.llm.opening import open_model
from redteam.llm.options import ModelOptions
from redteam.llm.search import moves
from redteam.llm.search.losses import LossName, Provider, open_provider
from redteam.llm.search.moves import Ids
from redteam.llm.search.search import Penalty, Rank, Rules, Search
from redteam.llm.search.state import Entry, State
from redteam.threats.strings.artifact import Strings
from redteam.threats.strings.target import LanguageTarget

Variant = Literal["buffer", "positions", "random"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StringSearch(StringGoal):
    """The knobs of a search."""

    init: Literal["repeat", "random"] = knob(
        "repeat", "begin with the target repeated, or with random tokens"
    )
    max_tokens: int | None = knob(
        None, "tokens that the search of one string may take on the target, about", low=1
    )
    max_usd: float | None = knob(
        None, "US dollars that the search of one string may take, about; needs --prices", above=0
    )
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
        1.0, "weight of the prompt's suspicion (nats a token), added where the target is a filter", low=0
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
        """What the artifact says of the search. split: which strings a universal one was searched on."""
        split = {"split": split_of(len(self.goals), self.config)} if self.config.universal else {}
        return {
            **split,
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
    if config.max_usd is not None and target.config.name not in ctx.ledger.prices.models:
        raise ConfigError(
            f'max_usd: {target.config.model} has no price; give a file with [models."{target.config.name}"] '
            "as --prices, or leave the budget in dollars out"
        )
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


def search_one(setting: Setting, index: int, goals: Sequence[Goal], variant: Variant) -> tuple[State, Ids]:
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
        refused=_refused(setting, requests),
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
    """The weighted suspicion of a filter that the attack knows, in the filter's unit, the worst request's."""
    guard, model, weight = setting.guard, setting.model, setting.config.fluency
    if guard is None:
        return None

    def penalty(candidates: Sequence[Ids]) -> list[float]:
        return [weight * s for s in _suspicion(guard, model, requests, candidates)]

    return penalty


def _suspicion(
    guard: PromptFilter, model: LanguageModel, requests: Sequence[str], candidates: Sequence[Ids]
) -> list[float]:
    """How suspicious each candidate is in its most suspicious request."""
    texts = [model.detokenize(ids) for ids in candidates]
    worst = np.max([guard.suspicion([request + text for text in texts]) for request in requests], axis=0)
    return [float(s) for s in worst]


def _refused(setting: Setting, requests: Sequence[str]) -> Callable[[Sequence[Ids]], list[bool]] | None:
    """Which candidates a filter that the attack knows would refuse."""
    guard, model = setting.guard, setting.model
    if guard is None:
        return None
    return lambda candidates: [s > guard.threshold for s in _suspicion(guard, model, requests, candidates)]


def run_search(setting: Setting, variant: Variant | None = None) -> list[Row]:
    """A search for each string, or one for all of them."""
    chosen = variant or setting.config.variant
    if setting.config.universal:
        return _universal(setting, chosen)
    return [search_row(setting, i, chosen) for i in range(len(setting.goals))]


def searching(name: str, variant: Variant | None = None) -> Callable[[LanguageTarget, Any, Context], Strings]:
    """The `run` of an attack of that name that is nothing but a search."""

    def run(target: LanguageTarget, config: StringSearch, ctx: Context) -> Strings:
        """One search a string, or one for all of them."""
        setting = prepare(target, config, ctx, name, VERSION)
        return assemble(run_search(setting, variant), config, setting.notes(), target.model)

    return run


def split_of(goals: int, config: StringSearch) -> list[str]:
    """`train` or `validation` for each string: a universal string is searched on the first part.

    Raises:
        ConfigError: nothing is left to search on.
    """
    train = goals - round(config.validation * goals) if config.universal else goals
    if train < 1:
        raise ConfigError("universal: no string is left to search on; lower --validation")
    return ["train"] * train + ["validation"] * (goals - train)


def _universal(setting: Setting, variant: Variant) -> list[Row]:
    """One string for all targets, searched on the first part of them; the rest only validate it.

    The budgets of the searched strings make one; what it took is booked on them in equal parts. At the
    end each of them is asked once by itself, so found and loss are its own.
    """
    config, goals, model = setting.config, setting.goals, setting.model
    train = split_of(len(goals), config).count("train")
    whole = replace(
        config, max_queries=max(train, config.max_queries * train - train),
        max_tokens=config.max_tokens and config.max_tokens * train,
        max_usd=config.max_usd and config.max_usd * train,
    )  # fmt: skip
    state, first = search_one(replace(setting, config=whole), 0, goals[:train], variant)
    best = best_of(state, first)
    texts = [model.detokenize(ids) for ids in (best, first)]
    rows = []
    for index, goal in enumerate(goals):
        request = request_of(config, goal)
        own = State(np.random.default_rng(0), finish=state.finish, done=True)
        if index < train:
            (loss,) = setting.provider([request + texts[0]], goal, math.inf, [None])
            own.queries, own.proxy_queries = state.queries // train + 1, state.proxy_queries // train
            own.requests, own.tokens, own.usd = (
                state.requests // train,
                state.tokens // train,
                state.usd / train,
            )
            if loss.success:
                own.found, own.found_loss = best, loss.value if loss.kind == "exact" else None
                own.found_at = (own.queries, own.tokens, own.usd)
            elif loss.kind == "exact":
                own.best = Entry(0, loss.value, 0, best, loss)
        rows.append(Row(goal, request + texts[0], request + texts[1], own))
    return rows


def search_row(setting: Setting, index: int, variant: Variant) -> Row:
    """The search of one string."""
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
