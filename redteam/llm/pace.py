"""How fast an endpoint is asked: adaptive concurrency, bounded retries, and no waiting past a deadline.

Additive increase, multiplicative decrease: one window's worth of answers widens the window by one
request; a 429 narrows it to 0.8 of itself, once for all requests that were in flight together.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")
DECREASE = 0.8
FIRST_DELAY_S, LONGEST_DELAY_S = 0.5, 30.0


class TransientError(Exception):
    """An attempt that failed and may succeed later. Its message holds no secret.

    after_s: how long the endpoint asked to wait. limited: it said that it was asked too fast.
    timeout: no answer came in time. billed: the endpoint may charge for it all the same.
    """

    def __init__(
        self,
        message: str,
        *,
        after_s: float | None = None,
        limited: bool = False,
        timeout: bool = False,
        billed: bool = True,
    ) -> None:
        super().__init__(message)
        self.after_s, self.limited, self.timeout, self.billed = after_s, limited, timeout, billed


@dataclass(frozen=True, slots=True, kw_only=True)
class GaveUp:
    """What stands in the place of an answer that never came. attempts: how often it was asked for."""

    message: str
    attempts: int
    timeout: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change of the concurrency: seconds since the pacer began, the new window, and why."""

    at_s: float
    window: int
    why: str


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that an endpoint asks to wait: `retry-after-ms`, or `Retry-After` in seconds or as an HTTP date.

    headers: names in lower case. now: seconds since the epoch. None: it does not say, or not in a form we know.
    """
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        if math.isfinite(seconds):
            return max(seconds, 0.0)
    try:
        return max(parsedate_to_datetime(headers["retry-after"]).timestamp() - now, 0.0)
    except (KeyError, ValueError, TypeError, OverflowError):
        return None


class Pacer:
    """Runs requests, at most `limit` at once, each at most `retries` + 1 times and until its deadline.

    history: every change of the window, for the report. Several threads may call `run`; they share the window.
    """

    def __init__(
        self,
        limit: int,
        rng: np.random.Generator,
        *,
        retries: int = 5,
        deadline_s: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        """Set up.

        Args:
            limit: the widest window.
            rng: draws the jitter.
            retries: further attempts after the first.
            deadline_s: seconds from the first attempt at a request to the beginning of its last.
            clock: monotonic seconds; a test passes its own, and a `sleep` that moves it.
            sleep: waits so many seconds; None: until then, or until the run is stopped.
        """
        self.limit, self.retries, self.deadline_s = limit, retries, deadline_s
        self.history: list[Change] = []
        self._rng, self._clock, self._sleep = rng, clock, sleep
        self._window, self._in_flight, self._easings = float(limit), 0, 0
        self._not_before = -math.inf
        self._turn = threading.Condition()
        self._began = clock()
        self._note("start")

    @property
    def window(self) -> int:
        """Requests that may be in flight now."""
        return max(1, math.floor(self._window))

    def run(
        self,
        calls: Sequence[Callable[[], T]],
        *,
        retries: int | None = None,
        gave_up: Callable[[GaveUp], None] = lambda lost: None,
    ) -> list[T | GaveUp]:
        """The answers to all calls, in their order. A call raises `TransientError` if it may be made again.

        retries: instead of the pacer's own. gave_up: told of each call that got no answer.

        Raises:
            Whatever else a call or `gave_up` raises: nothing new is sent, what is in flight is waited
            for, and the first such error in the order of the calls is raised.
        """
        tries = 1 + (self.retries if retries is None else retries)
        stop = threading.Event()

        def one(call: Callable[[], T]) -> T | GaveUp:
            answer = self._persist(call, tries, stop)
            if isinstance(answer, GaveUp) and not stop.is_set():
                gave_up(answer)
            return answer

        if len(calls) <= 1 or self.limit == 1:
            return [one(call) for call in calls]
        with ThreadPoolExecutor(min(self.limit, len(calls)), thread_name_prefix="pacer") as pool:
            futures: list[Future[T | GaveUp]] = [pool.submit(one, call) for call in calls]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:  # all are done, or one raised, or Ctrl-C: whatever waits now may not be sent
                stop.set()
                for future in futures:
                    future.cancel()
                with self._turn:
                    self._turn.notify_all()
        for future in futures:
            if not future.cancelled() and (error := future.exception()) is not None:
                raise error
        return [future.result() for future in futures]

    def _persist(self, call: Callable[[], T], tries: int, stop: threading.Event) -> T | GaveUp:
        """One call until it is answered, out of tries, or past its deadline."""
        deadline, failure = math.inf, TransientError("stopped before it was sent")
        for attempt in range(1, tries + 1):
            easings = self._enter(stop)
            if easings is None:
                return GaveUp(message=str(failure), attempts=attempt - 1, timeout=failure.timeout)
            deadline = min(deadline, self._clock() + self.deadline_s)
            try:
                answer = call()
            except TransientError as error:
                failure = error
            else:
                self._widen()
                return answer
            finally:
                self._leave()
            self._ease(failure, easings)
            delay = self._delay(failure, attempt)
            if attempt == tries or self._clock() + delay > deadline:
                break
            self._pause(delay, stop)
        return GaveUp(message=str(failure), attempts=attempt, timeout=failure.timeout)

    def _enter(self, stop: threading.Event) -> int | None:
        """Wait for a place in the window; how often it was narrowed so far, or None if the run is stopped."""
        while True:
            with self._turn:
                while self._in_flight >= self.window and not stop.is_set():
                    self._turn.wait()
                if stop.is_set():
                    return None
                hold = self._not_before - self._clock()
                if hold <= 0:
                    self._in_flight += 1
                    return self._easings
            self._pause(hold, stop)

    def _leave(self) -> None:
        with self._turn:
            self._in_flight -= 1
            self._turn.notify_all()

    def _widen(self) -> None:
        with self._turn:
            before = self.window
            self._window = min(float(self.limit), self._window + 1 / self._window)
            if self.window != before:
                self._note("answers came")

    def _ease(self, failure: TransientError, easings: int) -> None:
        """Narrow the window, unless another request of the same window did; hold all back if asked to wait."""
        if not failure.limited:
            return
        with self._turn:
            if easings == self._easings:
                self._easings += 1
                before, self._window = self.window, max(1.0, self._window * DECREASE)
                if self.window != before:
                    self._note("asked too fast")
            if failure.after_s is not None and failure.after_s <= self.deadline_s:
                self._not_before = max(self._not_before, self._clock() + failure.after_s)

    def _delay(self, failure: TransientError, attempt: int) -> float:
        """Seconds until the next attempt: what the endpoint asked for and a little, else exponential."""
        with self._turn:
            jitter = float(self._rng.random())
        if failure.after_s:
            return failure.after_s * (1 + 0.1 * jitter)
        return min(FIRST_DELAY_S * 2.0 ** (attempt - 1), LONGEST_DELAY_S) * (0.5 + jitter)

    def _pause(self, seconds: float, stop: threading.Event) -> None:
        if self._sleep is None:
            stop.wait(seconds)
        else:
            self._sleep(seconds)

    def _note(self, why: str) -> None:
        self.history.append(Change(at_s=self._clock() - self._began, window=self.window, why=why))
