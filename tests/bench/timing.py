"""Interleaved timing: two ways take turns, so that a busy machine slows both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """CPU seconds of both ways (medians of the turns), and slow / fast with its range over turns."""

    slow_s: float
    fast_s: float
    ratio: float
    low: float
    high: float
    turns: int


def side_by_side(slow: Callable[[], object], fast: Callable[[], object], turns: int = 9) -> Ratio:
    """Run both in turn `turns` times after a warm-up and compare CPU time (one thread: wall time idle)."""
    slow(), fast()
    pairs = []
    for _ in range(turns):
        times = []
        for way in (slow, fast):
            start = time.process_time()
            way()
            times.append(time.process_time() - start)
        pairs.append(times)
    ratios = sorted(s / f for s, f in pairs)
    return Ratio(
        statistics.median(s for s, _ in pairs), statistics.median(f for _, f in pairs),
        statistics.median(ratios), ratios[0], ratios[-1], turns,
    )  # fmt: skip
