"""What an endpoint can do, found out by trying, since a backend that answers nonsense scores exactly chance.

A case that is known: a server ignored `echo`, every choice of a multiple-choice benchmark got the
log-probability 0.0, and the result looked like a bad model. So nothing is believed that was not seen:
probabilities that add up, a likely word above an unlikely one, as many entries as tokens were sent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from redteam.core.errors import BackendError, CapabilityError
from redteam.llm.language import ANSWERED, Capabilities, Sampling, Template
from redteam.llm.replies import Ask, Reply, Step

PROMPT = "The capital of France is"
LIKELY, UNLIKELY = " Paris", " zebra"
OPEN_PROMPTS = ("My favourite", "She looked at the", "Yesterday we")  # nobody is certain how these go on
CUT_WORDS = (
    ("Complete: The capital of France is", "The capital of France is Par", "is"),
    ("Name the days of the week.", "Monday, Tuesday, Wednes", "day"),
    ("Count from one to ten.", "one, two, three, four, five, six, sev", "en"),
)
WIDTHS = (2000, 20, 5, 1)  # alternatives asked for; the first that is granted counts
SUM_SLACK = 1e-3
NOISE = 0.3  # nats by which two answers of one endpoint may differ (the API's standard deviation is 0.07)
BIAS = 3.0  # nats; small enough that the biased probability is still told from 1
ONE, SOME = Sampling(max_tokens=1), Sampling(max_tokens=12)


class Probed(Protocol):
    """What is probed: requests without judgement, and a tokenizer that may raise CapabilityError."""

    @property
    def template(self) -> Template: ...

    @property
    def ours(self) -> bool: ...

    def ask(self, asks: Sequence[Ask], *, fresh: bool = False, retries: int | None = None) -> list[Reply]: ...

    def tokenize(self, text: str) -> list[int]: ...

    def detokenize(self, ids: Sequence[int]) -> str: ...

    def encode(self, prompt: str) -> list[int]: ...

    def target_ids(self, target: str) -> list[int]: ...


def probe(model: Probed) -> Capabilities:
    """Try everything, with fifteen to twenty requests; `reasons` holds what was seen for each thing it cannot do.

    Besides the fields of `Capabilities`, `reasons` may have `ids` (a prompt must be sent as text) and
    `prefill` (the beginning of an answer cannot be given).

    Raises:
        BackendError: not even a plain request is answered.
    """
    plain = Ask(prompt=PROMPT, sampling=SOME, as_text=True)
    hello = _one(model, plain)
    if hello.finish not in ANSWERED:
        raise BackendError(f"the endpoint does not answer '{PROMPT}': {hello.message or hello.finish}")
    reasons: dict[str, str] = {}
    if why := _no_tokenizer(model, hello):
        reasons |= {"tokenizer": why, "top_k": f"tokens cannot be told apart: {why}"}
    top_k = 0 if why else _top_k(model, reasons)
    steers, moves = _bias(model, top_k, reasons)
    if not why:
        _beginnings(model, top_k, reasons)
    if lie := _no_echo(model, top_k, reasons):
        reasons["prompt_logprobs"] = lie
    again = _one(model, plain)
    if again.text != hello.text:
        reasons["repeatable"] = again.message or "one greedy request gave two different texts"
    return Capabilities(
        prompt_logprobs=not lie,
        top_k=top_k,
        bias_steers=steers,
        bias_moves=moves,
        tokenizer=not why,
        repeatable=again.text == hello.text,
        reasons=reasons,
    )


def _one(model: Probed, ask: Ask) -> Reply:
    return model.ask([ask], fresh=True, retries=1)[0]


def _next(model: Probed, prompt: str, k: int, bias: dict[int, float] | None = None) -> Reply:
    return _one(model, Ask(prompt=prompt, k=k, bias=bias or {}, sampling=ONE, as_text=True))


# ---------------------------------------------------------------- tokenizer


def _no_tokenizer(model: Probed, hello: Reply) -> str:
    """What shows that ids and text do not go both ways, or are not as many as the endpoint counts."""
    try:
        ids = model.encode(PROMPT)
        back = model.detokenize(model.tokenize(PROMPT))
    except CapabilityError as error:
        return str(error)
    if back.strip() != PROMPT:
        return f"'{PROMPT}' came back from it as '{back[:80]}'"
    if model.template == "raw" and hello.tokens_in is not None and hello.tokens_in != len(ids):
        return (
            f"it makes {len(ids)} tokens of a prompt that the endpoint counts as {hello.tokens_in}: "
            "it is not the model's"
        )
    return ""


# ---------------------------------------------------------------- log-probabilities of the next token


def _top_k(model: Probed, reasons: dict[str, str]) -> int:
    """How many alternatives come back whose numbers can be log-probabilities; 0 if none can."""
    for width in WIDTHS:
        reply = _next(model, PROMPT, width)
        if reply.finish in ANSWERED:
            break
        reasons["top_k"] = f"asked for {width} alternatives: {reply.message or reply.finish}"
    else:
        return 0
    reasons.pop("top_k", None)
    steps = [r.steps[0] for r in (reply, *(_next(model, p, width) for p in OPEN_PROMPTS)) if r.steps]
    if lie := _lie(steps):
        reasons["top_k"] = lie
        return 0
    return min(width, max(len(step.top) for step in steps))


def _lie(steps: Sequence[Step]) -> str:
    """What shows that these numbers are no log-probabilities of the tokens they stand at, or nothing."""
    for step in steps:
        values = list(step.top.values())
        total = sum(math.exp(v) for v in values)
        if total > 1 + SUM_SLACK:
            return f"the probabilities of {len(values)} different tokens add up to {total:.3g}"
        if len(values) > 2 and max(values) - min(values) < 1e-9:
            return f"all {len(values)} alternatives have the same log-probability"
        own = step.logprob
        if own is None or (step.chosen in step.top and abs(step.top[step.chosen] - own) > NOISE):
            return "a token has another log-probability than the same token among its alternatives"
        if own < max(values) - NOISE:
            return "the token decoded greedily is not the most likely one: numbers and tokens do not match"
    if all(step.logprob is not None and step.logprob > -1e-4 for step in steps):
        return (
            "every token is certain, also where no model is: the numbers are constant, or taken after the "
            "temperature of 0"
        )
    return ""


# ---------------------------------------------------------------- logit bias


def _bias(model: Probed, top_k: int, reasons: dict[str, str]) -> tuple[bool, bool]:
    """Whether a bias changes what is decoded, and whether it shows in the log-probabilities."""
    if not top_k:
        reasons["bias_steers"] = reasons["bias_moves"] = "it could not be seen: no log-probabilities"
        return False, False
    width, prompt = min(top_k, 20), OPEN_PROMPTS[0]
    plain = _next(model, prompt, width)
    before = plain.steps[0] if plain.steps else Step()
    token = next(t for word in (UNLIKELY, LIKELY) for t in model.tokenize(word)[-1:] if t != before.chosen)
    pushed = _next(model, prompt, width, {token: 100.0})
    came = pushed.steps[0].chosen if pushed.steps else -1
    if came != token:
        reasons["bias_steers"] = f"a bias of +100 on token {token} gave {pushed.message or f'token {came}'}"
        reasons["bias_moves"] = "a bias does not even steer"
        return False, False
    # Recovering a probability needs log-odds that rise by just the bias. A token that is already
    # listed is biased, and not the first: its probability is far from 1 before and after.
    token = next((t for t, p in before.top.items() if t != before.chosen and p > -8), before.chosen)
    after = _next(model, prompt, width, {token: BIAS})
    listed = after.steps[0].top if after.steps else {}
    if token not in listed or token not in before.top:
        reasons["bias_moves"] = f"token {token} is not listed with and without a bias of +{BIAS:g}"
        return True, False
    rise = _log_odds(listed[token]) - _log_odds(before.top[token])
    if abs(rise - BIAS) > NOISE:
        reasons["bias_moves"] = f"a bias of +{BIAS:g} raises the reported log-odds by {rise:.2f}"
    return True, abs(rise - BIAS) <= NOISE


def _log_odds(logprob: float) -> float:
    """logit(p) from log p; p is kept below 1, where rounding may have put it."""
    logprob = min(logprob, -1e-9)
    return logprob - math.log(-math.expm1(logprob))


# ---------------------------------------------------------------- the beginning of an answer


def _beginnings(model: Probed, top_k: int, reasons: dict[str, str]) -> None:
    """Whether the beginning of an answer can be given, and how."""
    if model.ours:
        return
    if model.template == "raw":
        if why := _ids_differ(model, top_k):
            reasons["ids"] = why
        return
    seen = []
    for prompt, cut, _ in CUT_WORDS:
        reply = _one(model, Ask(prompt=prompt, answer=tuple(model.tokenize(cut)), sampling=SOME))
        # Some servers repeat what they were given.
        seen.append(reply.text.lstrip().removeprefix(cut) or reply.message)
    goes_on = [said.startswith(rest) for said, (_, _, rest) in zip(seen, CUT_WORDS, strict=True)]
    if sum(goes_on) < 2:
        at = goes_on.index(False)
        reasons["prefill"] = (
            f"the beginning of an answer is not continued: after '{CUT_WORDS[at][1]}' came '{seen[at][:60]}'"
        )


def _ids_differ(model: Probed, top_k: int) -> str:
    """What shows that a prompt sent as ids is not the prompt sent as text."""
    ask = Ask(prompt=PROMPT, k=min(top_k, 5) or None, sampling=ONE)
    as_ids, as_text = _one(model, ask), _one(model, replace(ask, as_text=True))
    if as_ids.finish not in ANSWERED:
        return f"a prompt sent as ids: {as_ids.message}"
    if as_ids.tokens_in != as_text.tokens_in:
        return f"a prompt sent as ids counts {as_ids.tokens_in} tokens, and as text {as_text.tokens_in}"
    if not top_k and as_ids.text != as_text.text:
        return "a prompt sent as ids and as text get different answers"
    for one, other in zip(as_ids.steps, as_text.steps, strict=False):
        far = max((abs(one.top[t] - other.top[t]) for t in one.top if t in other.top), default=math.inf)
        if far > NOISE:
            return f"a prompt sent as ids and as text differ by {far:.2f} nats"
    return ""


# ---------------------------------------------------------------- echo


def _no_echo(model: Probed, top_k: int, reasons: dict[str, str]) -> str:
    """Why there is no echo with the true log-probability of every token that was sent, or nothing."""
    if "tokenizer" in reasons:
        return f"the target cannot be found in an echo: {reasons['tokenizer']}"
    if model.template == "chat":
        return "a chat returns no log-probabilities of what it was sent"
    if "ids" in reasons:
        return f"the target cannot be sent as ids: {reasons['ids']}"
    return _echo_lie(model, top_k)


def _echo_lie(model: Probed, top_k: int) -> str:
    sums = []
    for word in (LIKELY, UNLIKELY):
        answer = tuple(model.target_ids(word.strip()))
        values, lie = _echoed(model, PROMPT, answer)
        if lie:
            return lie
        sums.append(sum(values[-len(answer) :]))
    if sums[0] <= sums[1]:
        return f"'{LIKELY}' ({sums[0]:.2f} nats) is no likelier than '{UNLIKELY}' ({sums[1]:.2f}) after '{PROMPT}'"
    # What generation says of a token, the echo must say too. Where nothing is certain, numbers that
    # stand one place off differ.
    listed = _next(model, OPEN_PROMPTS[0], min(top_k, 5)).steps if top_k else ()
    for token, logprob in list(listed[0].top.items())[-1:] if listed else ():
        values, lie = _echoed(model, OPEN_PROMPTS[0], (token,))
        if lie or abs(values[-1] - logprob) > NOISE:
            return (
                lie or f"the echo gives a token {values[-1]:.2f} nats where generation gives it {logprob:.2f}"
            )
    return ""


def _echoed(model: Probed, prompt: str, answer: tuple[int, ...]) -> tuple[list[float], str]:
    """The log-probabilities of all tokens of prompt and answer but the first, or what is wrong with them."""
    ids = [*model.encode(prompt), *answer]
    reply = _one(model, Ask(prompt=prompt, answer=answer, k=1, echo=True, sampling=ONE))
    if reply.finish not in ANSWERED:
        return [], f"an echo was asked for: {reply.message or reply.finish}"
    if len(reply.steps) not in (len(ids), len(ids) + 1):
        return [], f"echo is ignored: {len(ids)} tokens were sent, and {len(reply.steps)} came back"
    steps = reply.steps[: len(ids)]
    if any(step.chosen not in (-1, token) for step, token in zip(steps, ids, strict=True)):
        return [], "the echo holds other tokens than were sent"
    values = [step.logprob for step in steps[1:] if step.logprob is not None]
    if len(values) < len(ids) - 1:
        return [], "the echo lacks the log-probability of a token"
    if max(values) - min(values) < 1e-9:
        return [], f"all tokens of the echo have the log-probability {values[0]:g}"
    return values, ""
