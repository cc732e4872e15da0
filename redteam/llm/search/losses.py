"""How far a prompt is from making a model say a string: -log P(target | prompt), by what the model tells.

A provider gives each candidate a `Loss`. Its `kind` says what the number is: `exact`; `floor`, a lower
bound because the model told no more; `unsent`, a prompt that a known filter would refuse; or `cut`, a
partial sum at which the candidate was given up, since each -log p_i >= 0 and the sum was already above
the bound [hayase2024gcq, section 3.2.2].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, Protocol

from redteam.core.errors import CapabilityError
from redteam.llm.language import ANSWERED, Finish, Goal, LanguageModel

LossName = Literal["auto", "prompt-logprobs", "topk-bias", "topk", "bias-search"]
_WIDE = 1000  # alternatives from which a plain top-k list tells enough
_TOP = 2000  # alternatives asked for where an endpoint gives many
_TRUSTED = (1e-4, 1 - 1e-4)  # biased probabilities from which the plain one is recovered
_TRIES = 12
_GAP = 60.0  # nats within which the bias search looks for a token
_TOLERANCE = 0.02


@dataclass(frozen=True, slots=True)
class Loss:
    """One candidate's loss in nats. tokens: log p of each target token that was asked.

    success: greedy decoding gives the target; None where the model did not tell.
    """

    value: float
    kind: Literal["exact", "floor", "cut", "unsent"]
    success: bool | None
    tokens: tuple[float, ...] = ()
    finish: Finish = "stop"


class Provider(Protocol):
    """Losses of candidates. parents: what was known of each candidate's parent, token by token."""

    def __call__(
        self, prompts: Sequence[str], goal: Goal, bound: float, parents: Sequence[Loss | None]
    ) -> list[Loss]: ...


def unanswered(finish: Finish) -> Loss:
    """The loss of a prompt that got no answer."""
    return Loss(math.inf, "exact", False, (), finish)


def from_prompt_logprobs(model: LanguageModel) -> Provider:
    """One query a candidate: the model returns the log-probability of every target token."""

    def losses(
        prompts: Sequence[str], goal: Goal, bound: float, parents: Sequence[Loss | None]
    ) -> list[Loss]:
        return [
            Loss(s.loss, "exact", s.exact if s.greedy is not None else None, tuple(s.logprobs.tolist()))
            if s.finish in ANSWERED
            else unanswered(s.finish)
            for s in model.score(prompts, goal.text)
        ]

    return losses


def log_p(biased: float, bias: float) -> float:
    """log p of a token from its log-probability `biased` after `bias` was added to its logit.

    In log-odds: logit(p) = logit(p_b) - b, so log p = -softplus(b - logit(p_b)); this does not overflow
    [hayase2024gcq, appendix B, in another form].
    """
    logit = biased - _log1mexp(biased)
    x = bias - logit
    return -(max(x, 0.0) + math.log1p(math.exp(-abs(x))))


def _log1mexp(x: float) -> float:
    """log(1 - e^x) for x < 0."""
    if x >= 0:
        return -math.inf
    return math.log(-math.expm1(x)) if x > -math.log(2) else math.log1p(-math.exp(x))


@dataclass(frozen=True, slots=True)
class _Step:
    """What was learnt about one target token. value: its log p, or a bound from above if not exact."""

    value: float
    exact: bool
    greedy: bool | None
    finish: Finish = "stop"


_Ask = Callable[[str, Sequence[int], int, float | None], _Step]


def _token_by_token(ask: _Ask, workers: int) -> Provider:
    """Ask target token after target token, each after the target's own beginning; stop past the bound."""

    def one(prompt: str, goal: Goal, bound: float, parent: Loss | None) -> Loss:
        total, exact, greedy, told = 0.0, True, True, []
        known = True
        for i, token in enumerate(goal.tokens):
            guess = parent.tokens[i] if parent is not None and i < len(parent.tokens) else None
            step = ask(prompt, goal.tokens[:i], token, guess)
            if step.finish not in ANSWERED:
                return unanswered(step.finish)
            told.append(step.value)
            total -= step.value
            exact, known = exact and step.exact, known and step.greedy is not None
            greedy = greedy and bool(step.greedy)
            if total > bound and i + 1 < len(goal.tokens):
                return Loss(total, "cut", False if known and not greedy else None, tuple(told))
        return Loss(total, "exact" if exact else "floor", greedy if known else None, tuple(told))

    def losses(
        prompts: Sequence[str], goal: Goal, bound: float, parents: Sequence[Loss | None]
    ) -> list[Loss]:
        if workers <= 1 or len(prompts) <= 1:
            return [one(p, goal, bound, parent) for p, parent in zip(prompts, parents, strict=True)]
        with ThreadPoolExecutor(workers) as pool:
            return list(
                pool.map(lambda pair: one(pair[0], goal, bound, pair[1]), zip(prompts, parents, strict=True))
            )

    return losses


def from_topk_bias(model: LanguageModel, workers: int = 1) -> Provider:
    """Recover each log p from a top-k list that `logit_bias` moves [hayase2024gcq, appendix B].

    The bias is minus the log of the parent's probability, which puts the token near one half; where the
    token is not in the list, or too near 0 or 1 to be read, the bias is searched for.
    """
    k = min(5, model.capabilities().top_k)

    def ask(prompt: str, answer: Sequence[int], token: int, guess: float | None) -> _Step:
        bias = -guess if guess is not None else 0.0
        low, high = -_GAP, _GAP
        best: tuple[float, float] | None = None
        for _ in range(_TRIES):
            found = model.next_token(prompt, answer, k=k, bias={token: bias} if bias else None)
            if found.finish not in ANSWERED:
                return _Step(-math.inf, False, None, found.finish)
            biased = found.top.get(token)
            if biased is None:
                low, bias = bias, min((bias + high) / 2, bias + 8.0)
                continue
            best = (biased, bias)
            if _TRUSTED[0] <= math.exp(biased) <= _TRUSTED[1] or (bias == 0.0 and biased < 0):
                break
            if math.exp(biased) > _TRUSTED[1]:
                high, bias = bias, max((low + bias) / 2, bias - 8.0)
            else:
                low, bias = bias, min((bias + high) / 2, bias + 8.0)
        if best is None:
            return _Step(-low if low > 0 else 0.0, False, None)
        value = log_p(*best)
        greedy = True if value > -math.log(2) else None
        return _Step(value, True, greedy)

    return _token_by_token(ask, workers)


def from_topk(model: LanguageModel, workers: int = 1) -> Provider:
    """Read each log p off a plain top-k list; of a token that is not in it only a floor is known."""
    k = min(_TOP, model.capabilities().top_k)

    def ask(prompt: str, answer: Sequence[int], token: int, guess: float | None) -> _Step:
        found = model.next_token(prompt, answer, k=k)
        if found.finish not in ANSWERED:
            return _Step(-math.inf, False, None, found.finish)
        greedy = found.chosen == token
        if token in found.top:
            return _Step(found.top[token], True, greedy)
        if not found.top:
            return _Step(-math.inf, False, None, "error")
        return _Step(min(found.top.values()), False, greedy)

    return _token_by_token(ask, workers)


def from_bias_search(model: LanguageModel, workers: int = 1) -> Provider:
    """Find the bias at which a token wins: log p is the winner's log p minus that bias.

    For endpoints whose returned log-probabilities `logit_bias` does not move but whose decoding it does,
    as OpenAI's since March 2024 [hayase2024gcq, section 3.2.1]; about a dozen requests a token.
    """
    k = max(1, min(5, model.capabilities().top_k))

    def ask(prompt: str, answer: Sequence[int], token: int, guess: float | None) -> _Step:
        plain = model.next_token(prompt, answer, k=k)
        if plain.finish not in ANSWERED:
            return _Step(-math.inf, False, None, plain.finish)
        if token in plain.top:
            return _Step(plain.top[token], True, plain.chosen == token)
        if not plain.top:
            return _Step(-math.inf, False, None, "error")
        best = max(plain.top.values())
        low, high = 0.0, _GAP
        while high - low > _TOLERANCE:
            middle = (low + high) / 2
            found = model.next_token(prompt, answer, k=1, bias={token: middle})
            if found.finish not in ANSWERED:
                return _Step(-math.inf, False, None, found.finish)
            low, high = (low, middle) if found.chosen == token else (middle, high)
        return _Step(best - (low + high) / 2, high < _GAP, False)

    return _token_by_token(ask, workers)


_BUILDERS: dict[LossName, Callable[[LanguageModel, int], Provider]] = {
    "prompt-logprobs": lambda model, workers: from_prompt_logprobs(model),
    "topk-bias": from_topk_bias,
    "topk": from_topk,
    "bias-search": from_bias_search,
}


def _usable(model: LanguageModel) -> dict[LossName, bool]:
    can = model.capabilities()
    return {
        "prompt-logprobs": can.prompt_logprobs,
        "topk-bias": can.bias_moves and can.top_k >= 1,
        "topk": can.top_k >= _WIDE,
        "bias-search": can.bias_steers and can.top_k >= 1,
    }


def open_provider(name: LossName, model: LanguageModel, workers: int = 1) -> tuple[str, Provider]:
    """(name, provider): the one asked for, or with `auto` the first that the model's probe allows.

    Raises:
        CapabilityError: the model cannot tell what that provider reads; it says why and what can be used.
    """
    usable = _usable(model)
    if name == "auto":
        name = next((n for n, fine in usable.items() if fine), name)
    if not usable.get(name) and not (name == "topk" and model.capabilities().top_k):
        reasons = "; ".join(f"{k}: {v}" for k, v in model.capabilities().reasons.items())
        others = ", ".join(n for n, fine in usable.items() if fine) or "none"
        raise CapabilityError(
            f"the model cannot be scored by {name if name != 'auto' else 'any loss'} ({reasons or 'see its probe'}); "
            f"losses it allows: {others}"
        )
    return name, _BUILDERS[name](model, workers)
