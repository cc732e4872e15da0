"""Moderation by an endpoint: `openai:MODEL`, or any server that speaks the same /moderations.

The address and the key come from OPENAI_BASE_URL and OPENAI_API_KEY and go nowhere else. Up to 32 texts go
into one request, as in [hayase2024gcq] section 4.5. Nothing is kept in the cache of answers: an endpoint's
scores are noisy, and a scorer that asks again is to hear something new.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from redteam.core.context import Context
from redteam.core.errors import BackendError, ConfigError
from redteam.core.types import TargetKind
from redteam.llm.endpoint import DEFAULT_URL
from redteam.llm.language import Verdict
from redteam.llm.moderation import Address, no_verdict, words_in
from redteam.llm.pace import GaveUp, Pacer, TransientError
from redteam.llm.replies import MalformedError
from redteam.llm.wire import RejectedError, Wire

TEXTS_A_REQUEST = 32
IN_FLIGHT = 8
# In a row without an answer, after which none is expected: requests that failed, texts that were refused.
HOPELESS, REFUSED = 5, 20


def open_api(address: Address, ctx: Context, role: str) -> ApiClassifier:
    """Open `openai:MODEL`. Nothing is sent before it is asked something.

    Raises:
        ConfigError: no key, the extra `llm` is missing, or an address that is none.
    """
    key, url = os.environ.get("OPENAI_API_KEY", ""), os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL
    if not key:
        raise ConfigError("set OPENAI_API_KEY; a local server that checks no key takes any text")
    pacer = Pacer(IN_FLIGHT, ctx.rng("moderation", role))
    return ApiClassifier(Wire(url, key), address.name, pacer, ctx, role)


@dataclass(frozen=True, slots=True)
class Answer:
    """One result of a reply. scores: category to score."""

    flagged: bool
    scores: Mapping[str, float]


def parse(payload: Any, count: int) -> tuple[list[Answer], str]:
    """The results of a reply from decoded JSON, and the model that answered, empty if it does not say.

    Raises:
        MalformedError: not `count` results, or one that lacks its flag or a score in [0, 1].
    """
    results = payload.get("results") if isinstance(payload, dict) else None
    if not isinstance(results, list) or len(results) != count:
        raise MalformedError(f"expected {count} results, as many as texts")
    model = payload.get("model")
    return [_answer(result) for result in results], model if isinstance(model, str) else ""


def _answer(result: Any) -> Answer:
    flagged = result.get("flagged") if isinstance(result, dict) else None
    scores = result.get("category_scores") if isinstance(result, dict) else None
    if not isinstance(flagged, bool):
        raise MalformedError("expected each result to say whether it is flagged")
    if not isinstance(scores, dict) or not scores:
        raise MalformedError("expected each result to have category_scores")
    # A category that the model does not know is null.
    known = {str(name): score for name, score in scores.items() if score is not None}
    if not known or not all(_is_score(score) for score in known.values()):
        raise MalformedError("expected each category's score as a number from 0 to 1")
    return Answer(flagged, {name: float(score) for name, score in known.items()})


def _is_score(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and 0 <= value <= 1


@dataclass
class ApiClassifier:
    """A served classifier. pacer: its history of concurrency is for the report."""

    wire: Wire
    model: str
    pacer: Pacer
    ctx: Context
    role: str
    kind: TargetKind = "text-classifier"
    _names: tuple[str, ...] = ()
    _answers_as: str = ""
    _lost: int = 0
    _refused: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the categories in alphabetical order; asks about one harmless text if none was asked about yet.

        Raises:
            BackendError: the endpoint does not answer.
        """
        if not self._names:
            (verdict,) = self.classify(["Hello."])
            if not self._names:
                raise BackendError(f"openai:{self.model} did not answer: {verdict.message}")
        return self._names

    def classify(self, texts: Sequence[str]) -> list[Verdict]:
        """One verdict for each text; a request that fails for good gives its texts an error or a timeout.

        Raises:
            LimitReachedError: a cap or the time. BackendError: no request will be answered.
        """
        batches = [texts[i : i + TEXTS_A_REQUEST] for i in range(0, len(texts), TEXTS_A_REQUEST)]
        got = self.pacer.run([partial(self._ask, batch) for batch in batches], gave_up=self._count_lost)
        verdicts: list[Verdict] = []
        for batch, reply in zip(batches, got, strict=True):
            answers = [reply] * len(batch) if isinstance(reply, GaveUp) else reply
            verdicts += [self._verdict(answer) for answer in answers]
        return verdicts

    def fingerprint(self) -> dict[str, Any]:
        """The name. Of a remote classifier nobody knows the weights, or when they change."""
        return {"backend": "openai", "model": self.model}

    def close(self) -> None:
        """Close the connections."""
        self.wire.close()

    # ------------------------------------------------------------ requests

    def _ask(self, texts: Sequence[str]) -> list[Answer | RejectedError]:
        """One request. A refused batch is asked about in halves, so that one text cannot take others along."""
        try:
            return list(self._attempt(texts))
        except RejectedError as error:
            if len(texts) == 1:
                self._count_refused(error)
                return [error]
        half = len(texts) // 2
        return self._ask(texts[:half]) + self._ask(texts[half:])

    def _attempt(self, texts: Sequence[str]) -> list[Answer]:
        """One attempt: booked, sent, settled. Raises `TransientError` if it may be made again."""
        self.ctx.limits.check_time()
        tokens, ledger = words_in(texts), self.ctx.ledger
        ticket = ledger.reserve(
            model=self.model, role=self.role, queries=len(texts), tokens_in=tokens, tokens_out=0
        )
        failure: Exception
        try:
            answers, model = parse(self._send({"model": self.model, "input": list(texts)}), len(texts))
            self._check_categories(answers)
        except MalformedError as error:
            failure = TransientError(f"malformed reply: {error}")
        except (TransientError, RejectedError, BackendError) as error:
            failure = error
        else:
            ledger.settle(ticket, tokens_in=tokens, tokens_out=0)
            self._check_model(model)
            return answers
        # What got no answer may have been computed, and charged; what got a refusal was not.
        billed = getattr(failure, "billed", False)
        ledger.settle(ticket, tokens_in=tokens if billed else 0, tokens_out=0, failed=True)
        raise failure

    def _send(self, body: Mapping[str, Any]) -> Any:
        calls: Any = self.wire._client.moderations
        return self.wire._once(lambda: calls.with_streaming_response.create(**body))

    def _check_categories(self, answers: Sequence[Answer]) -> None:
        """Every answer scores the categories of the first one, in alphabetical order."""
        with self._lock:
            names = self._names or tuple(sorted(answers[0].scores))
            if any(tuple(sorted(answer.scores)) != names for answer in answers):
                raise MalformedError("expected scores of the same categories in all replies")
            self._names, self._lost, self._refused = names, 0, 0

    def _check_model(self, model: str) -> None:
        with self._lock:
            before, self._answers_as = self._answers_as or model, self._answers_as or model
        if model and model != before:
            now, then = (self.wire.scrub(name)[:80] for name in (model, before))
            raise BackendError(
                f"'{then}' answered at first and '{now}' now: the endpoint changed what openai:{self.model} "
                "stands for; name one of them"
            )

    def _count_lost(self, lost: GaveUp) -> None:
        with self._lock:
            self._lost += 1
            if self._lost < HOPELESS:
                return
            self._lost = 0
        raise BackendError(f"{HOPELESS} requests in a row got no answer; the last: {lost.message}")

    def _count_refused(self, error: RejectedError) -> None:
        with self._lock:
            self._refused += 1
            if self._refused < REFUSED:
                return
            self._refused = 0
        raise BackendError(f"{REFUSED} texts in a row were refused; the last: {error}")

    def _verdict(self, answer: Answer | RejectedError | GaveUp) -> Verdict:
        if isinstance(answer, Answer):
            scores = np.array([answer.scores[name] for name in self._names])
            return Verdict(scores=scores, flagged=answer.flagged)
        if isinstance(answer, RejectedError):
            return no_verdict(len(self._names), answer.finish, str(answer))
        why = f"{answer.message}, after {answer.attempts} attempts"
        return no_verdict(len(self._names), "timeout" if answer.timeout else "error", why)
