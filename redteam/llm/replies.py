"""What an OpenAI-compatible endpoint sends back, taken apart with suspicion.

Whatever is missing, of the wrong type or no number becomes a `MalformedError`: a wrong score is worse than none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from redteam.llm.chat_tools import MOST_CALLS, written
from redteam.llm.language import Finish, Sampling
from redteam.llm.messages import Message, Tool, ToolCall

Api = Literal["completions", "chat"]
# Servers that cannot write minus infinity write this, or less.
NEVER = -9999.0
_SLACK = 1e-3  # nats by which rounding may lift a log-probability above 0
_FINISH: dict[str, Finish] = {"length": "length", "content_filter": "filtered"}


class MalformedError(Exception):
    """A reply that is not what was asked for. The message holds none of its text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request, before it is put into the words of an API.

    answer: ids of the answer's beginning. k: alternatives to report; None: no log-probabilities at all.
    echo: log-probabilities of the prompt and `answer` too. as_text: send text even where ids could be sent.
    messages: a conversation, with `tools`, instead of the prompt. ids: the whole prompt, template included.
    """

    prompt: str
    answer: tuple[int, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    k: int | None = None
    bias: Mapping[int, float] = field(default_factory=dict)
    echo: bool = False
    as_text: bool = False
    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One position. chosen: id of the token there, -1 if it is not known. logprob: its own, in nats.

    best: the largest log-probability that was reported there. top: id to log-probability, of the
    alternatives whose ids are known. None: not reported, as for the first token of an echoed prompt.
    """

    chosen: int = -1
    logprob: float | None = None
    best: float | None = None
    top: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer. steps: what was reported of each position. tokens_*: as the endpoint counts, if it does."""

    text: str = ""
    finish: Finish = "stop"
    message: str = ""
    steps: tuple[Step, ...] = ()
    tokens_in: int | None = None
    tokens_out: int | None = None
    model: str = ""
    calls: tuple[ToolCall, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values for the cache."""
        steps = [[s.chosen, s.logprob, s.best, [[i, p] for i, p in s.top.items()]] for s in self.steps]
        return {
            "text": self.text, "finish": self.finish, "message": self.message, "steps": steps,
            "tokens_in": self.tokens_in, "tokens_out": self.tokens_out, "model": self.model,
            **({"calls": [[c.id, c.name, c.arguments] for c in self.calls]} if self.calls else {}),
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Reply:
        """The reverse."""
        steps = tuple(
            Step(chosen=chosen, logprob=logprob, best=best, top={i: p for i, p in top})
            for chosen, logprob, best, top in value["steps"]
        )
        calls = tuple(ToolCall(id=i, name=n, arguments=a) for i, n, a in value.get("calls", ()))
        return cls(**{**value, "steps": steps, "calls": calls})


IdOf = Callable[[bytes], int | None]


def parse(payload: Any, api: Api, ask: Ask, id_of: IdOf) -> Reply:
    """A reply from decoded JSON. id_of: the id of a token by its bytes, if there is exactly one.

    Raises:
        MalformedError: saying what was expected.
    """
    if not isinstance(payload, dict):
        raise MalformedError("expected a JSON object")
    choices = payload.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise MalformedError("expected at least one choice, got none")
    choice = choices[0]
    text, refusal = _words(choice, api)
    usage = payload.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    finish: Finish = "refused" if refusal else _FINISH.get(str(choice.get("finish_reason")), "stop")
    steps: tuple[Step, ...] = ()
    if ask.k is not None and finish not in ("refused", "filtered"):
        steps = _steps(choice.get("logprobs"), id_of, ask.echo)
        if not steps:
            raise MalformedError("expected log-probabilities, got none")
        if ask.k > 0 and not ask.echo and not steps[0].top:
            raise MalformedError("expected the most likely tokens, got none that the tokenizer knows")
    model = payload.get("model")
    return Reply(
        text=_whole(refusal or text),
        finish=finish,
        message="the model refused" if refusal else "",
        steps=steps,
        tokens_in=_count(usage.get("prompt_tokens")),
        tokens_out=_count(usage.get("completion_tokens")),
        model=model if isinstance(model, str) else "",
        calls=_calls(choice["message"].get("tool_calls")) if ask.tools and not refusal else (),
    )


def _words(choice: Mapping[str, Any], api: Api) -> tuple[str, str]:
    """The text, and the refusal if the model refused in its own channel."""
    if api == "completions":
        text = choice.get("text")
        if not isinstance(text, str):
            raise MalformedError("expected the choice's text")
        return text, ""
    message = choice.get("message")
    if not isinstance(message, dict):
        raise MalformedError("expected the choice's message")
    text, refusal = message.get("content"), message.get("refusal")
    if not isinstance(text, str | None) or not isinstance(refusal, str | None):
        raise MalformedError("expected the message's content as text")
    return text or "", refusal or ""


def _calls(value: Any) -> tuple[ToolCall, ...]:
    """Calls of tools. Their arguments may be broken, for the model wrote them; all else may not."""
    if not isinstance(value, list | None):
        raise MalformedError("expected the calls as a list")
    given_calls: list[Any] = value or []
    if len(given_calls) > MOST_CALLS:
        raise MalformedError(f"expected at most {MOST_CALLS} calls, got {len(given_calls)}")
    calls = []
    for number, call in enumerate(given_calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise MalformedError("expected each call as an object with a function")
        name, given = function.get("name"), call.get("id")
        arguments = written({} if function.get("arguments") is None else function["arguments"])
        if not isinstance(name, str) or not name or arguments is None:
            raise MalformedError("expected each call's name, and its arguments as text or an object")
        known = isinstance(given, str) and given
        calls.append(
            ToolCall(id=_whole(given) if known else f"call_{number}", name=_whole(name), arguments=arguments)
        )
    return tuple(calls)


def _whole(text: str) -> str:
    """A text without halves of surrogate pairs, which JSON can hold and nothing else."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _count(value: Any) -> int | None:
    whole = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
    return value if whole else None


def _steps(logprobs: Any, id_of: IdOf, echo: bool) -> tuple[Step, ...]:
    """Positions in either dialect: lists side by side (completions), or a list of tokens (chat, llama.cpp)."""
    if logprobs is None:
        return ()
    if not isinstance(logprobs, dict):
        raise MalformedError("expected log-probabilities as an object")
    if isinstance(content := logprobs.get("content"), list):
        return tuple(_chat_step(token, id_of) for token in content)
    tokens, values = logprobs.get("tokens"), logprobs.get("token_logprobs")
    if not isinstance(tokens, list) or not isinstance(values, list) or len(tokens) != len(values):
        raise MalformedError("expected as many log-probabilities as tokens")
    tops = logprobs.get("top_logprobs")
    tops = tops if isinstance(tops, list) and len(tops) == len(tokens) else [None] * len(tokens)
    steps = []
    for i, (token, value, top) in enumerate(zip(tokens, values, tops, strict=True)):
        first = echo and i == 0  # nothing comes before it, so nothing predicts it
        own = None if first and value is None else _logprob(value)
        alternatives = top.items() if isinstance(top, dict) else ()
        steps.append(
            _step(_named(token, id_of), own, [(_named(t, id_of), _logprob(p)) for t, p in alternatives])
        )
    return tuple(steps)


def _chat_step(token: Any, id_of: IdOf) -> Step:
    if not isinstance(token, dict):
        raise MalformedError("expected each token as an object")
    alternatives = token.get("top_logprobs")
    if not isinstance(alternatives, list | None) or not all(isinstance(a, dict) for a in alternatives or ()):
        raise MalformedError("expected the alternatives as a list of objects")
    pairs = [(_spelled(a, id_of), _logprob(a.get("logprob"))) for a in alternatives or ()]
    return _step(_spelled(token, id_of), _logprob(token.get("logprob")), pairs)


def _step(chosen: int, logprob: float | None, alternatives: list[tuple[int, float]]) -> Step:
    """Sorted by us: an endpoint's order carries no information that its numbers do not."""
    known = sorted(
        (pair for pair in alternatives if pair[0] >= 0 and pair[1] > NEVER), key=lambda pair: -pair[1]
    )
    best = max((p for _, p in alternatives), default=None)
    return Step(chosen=chosen, logprob=logprob, best=best, top=dict(known))


def _logprob(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise MalformedError("expected a log-probability, got something that is no number")
    if value > _SLACK:
        raise MalformedError(f"expected a log-probability of at most 0, got {value:.3g}")
    return max(min(float(value), 0.0), NEVER)


def _spelled(token: Mapping[str, Any], id_of: IdOf) -> int:
    """The id of a token that comes with an id, with bytes, or with text."""
    if (known := _count(token.get("id"))) is not None:
        return known
    raw = token.get("bytes")
    if isinstance(raw, list) and raw and all(isinstance(b, int) and 0 <= b < 256 for b in raw):
        found = id_of(bytes(raw))
        return -1 if found is None else found
    return _named(token.get("token"), id_of)


def _named(token: Any, id_of: IdOf) -> int:
    """The id of a token by its text: plain, `token_id:17` (vLLM), or `bytes:\\xe2\\x80` (OpenAI completions)."""
    if not isinstance(token, str):
        raise MalformedError("expected a token's text")
    if match := re.fullmatch(r"token_id:(\d{1,9})", token):
        return int(match[1])
    if re.fullmatch(r"bytes:(\\x[0-9a-f]{2})+", token):
        raw = bytes(int(h, 16) for h in token.removeprefix("bytes:").split("\\x")[1:])
    elif "\ufffd" in token:  # a broken character stands for several tokens
        return -1
    else:
        raw = token.encode("utf-8", "surrogatepass")
    found = id_of(raw)
    return -1 if found is None else found
