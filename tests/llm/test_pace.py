"""Pacing: how fast, how often and how long an endpoint is asked. No test here waits for a clock."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redteam.core.errors import LimitReachedError
from redteam.llm.pace import GaveUp, Pacer, TransientError, retry_after


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now, self.slept, self.lock = 0.0, [], threading.Lock()

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        with self.lock:
            self.now += seconds
            self.slept.append(seconds)


def pacer(limit: int = 1, **changes) -> tuple[Pacer, Clock]:
    clock = Clock()
    return Pacer(limit, np.random.default_rng(0), clock=clock, sleep=clock.sleep, **changes), clock


def failing(times: int, **how):
    """A call that fails so many times and then answers with the number of its attempts."""
    attempts = []

    def call():
        attempts.append(1)
        if len(attempts) <= times:
            raise TransientError("busy", **how)
        return len(attempts)

    return call


NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:50 GMT"}, 30),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:10 GMT"}, 0),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "when I am ready"}, None),
        ({"retry-after": ""}, None),
    ],
)
def test_retry_after_in_all_its_forms(headers, expected):
    assert retry_after(headers, NOW) == expected


@given(st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms"]), st.text()))
def test_no_header_breaks_it(headers):
    seconds = retry_after(headers, NOW)
    assert seconds is None or 0 <= seconds < float("inf")


@given(st.integers(0, 8), st.integers(0, 12), st.integers(1, 4))
def test_attempts_are_bounded(retries, failures, n):
    it, _ = pacer(retries=retries, deadline_s=1e9)
    for answer in it.run([failing(failures) for _ in range(n)]):
        if failures <= retries:
            assert answer == failures + 1
        else:
            assert answer == GaveUp(message="busy", attempts=retries + 1)


def test_delays_double_with_jitter_from_the_generator():
    delays = []
    for seed in (0, 0, 1):
        clock = Clock()
        Pacer(1, np.random.default_rng(seed), clock=clock, sleep=clock.sleep).run([failing(9)])
        delays.append(clock.slept)
    assert delays[0] == delays[1] != delays[2]
    for attempt, seconds in enumerate(delays[0]):
        assert 0.5 <= seconds / (0.5 * 2**attempt) <= 1.5


def test_it_waits_as_long_as_it_is_asked_to_and_not_much_longer():
    it, clock = pacer()
    assert it.run([failing(1, after_s=20, limited=True)]) == [2]
    assert 20 <= clock.now <= 22


@pytest.mark.parametrize("after_s", [500.0, 1e12])
def test_it_does_not_wait_past_its_deadline_and_holds_nobody_else_back(after_s):
    it, clock = pacer(deadline_s=300)
    first, second = it.run([failing(1, after_s=after_s, limited=True), failing(0)])
    assert isinstance(first, GaveUp) and first.attempts == 1
    assert second == 1 and clock.now == 0


def test_the_deadline_ends_retries_before_their_number_does():
    it, clock = pacer(retries=1000, deadline_s=60)
    (answer,) = it.run([failing(10**6, timeout=True)])
    assert isinstance(answer, GaveUp) and answer.timeout and answer.attempts < 12
    assert clock.now <= 60


def test_429_narrows_the_window_once_and_answers_widen_it_again():
    limit, limited = 10, threading.Event()
    it, _clock = pacer(limit)
    barrier = threading.Barrier(limit)
    first = threading.local()

    def call():
        if not limited.is_set() and not getattr(first, "done", False):
            first.done = True
            barrier.wait(10)  # all ten are in flight together, and all ten get a 429
            limited.set()
            raise TransientError("too fast", limited=True, after_s=1.0)
        return 1

    assert it.run([call] * limit) == [1] * limit
    windows = [change.window for change in it.history]
    assert windows[:2] == [10, 8], "0.8 of ten, once, not ten times"
    it.run([failing(0)] * 40)
    windows = [change.window for change in it.history]
    assert windows == [10, 8, 9, 10]
    assert [change.why for change in it.history][:3] == ["start", "asked too fast", "answers came"]


def test_the_window_never_leaves_one_to_limit():
    it, _ = pacer(3, retries=40, deadline_s=1e9)
    it.run([failing(30, limited=True)])
    assert min(change.window for change in it.history) == 1
    it.run([failing(0)] * 100)
    assert it.window == 3 == max(change.window for change in it.history)


def test_no_more_are_in_flight_than_the_limit_and_the_order_is_kept():
    it = Pacer(4, np.random.default_rng(0))
    lock, flying, most = threading.Lock(), [0], [0]

    def call(i):
        with lock:
            flying[0] += 1
            most[0] = max(most[0], flying[0])
        time.sleep(0.002)
        with lock:
            flying[0] -= 1
        return i

    assert it.run([lambda i=i: call(i) for i in range(40)]) == list(range(40))
    assert 2 <= most[0] <= 4


@pytest.mark.parametrize("limit", [1, 4])
def test_an_error_that_is_not_transient_stops_everything_at_once(limit):
    it, sent = Pacer(limit, np.random.default_rng(0)), []

    def call(i):
        sent.append(i)
        if i == 5:
            raise LimitReachedError("enough")
        # Those behind it take long, so that a busy machine has the time to hear of the error.
        time.sleep(0.002 if i < 5 else 0.1)
        return i

    with pytest.raises(LimitReachedError, match="enough"):
        it.run([lambda i=i: call(i) for i in range(200)])
    assert len(sent) <= 5 + 2 * limit
    assert it.run([lambda: 7, lambda: 8]) == [7, 8], "it can be used again"


def test_a_request_that_waits_does_not_outlive_a_stop():
    it = Pacer(2, np.random.default_rng(0))

    def stop():
        time.sleep(0.05)
        raise LimitReachedError("enough")

    began = time.monotonic()
    with pytest.raises(LimitReachedError):
        it.run([failing(3, after_s=60), stop])
    assert time.monotonic() - began < 10
