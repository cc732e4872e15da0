"""Intervals for rates, paired differences and repeated seeds. Pure functions of counts and arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt

import numpy as np
from scipy import stats as sps

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its interval. n: distinct examples; seeds: repeats (victims, or cells)."""

    value: float
    low: float | None
    high: float | None
    n: int
    seeds: int
    method: str
    confidence: float = CONFIDENCE


def wilson(successes: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson score interval of a binomial proportion."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"expected 0 <= successes <= n with n >= 1, got {successes} of {n}")
    ci = sps.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(ci.low), float(ci.high)


def _wilson_at(p: float, n: int, confidence: float) -> tuple[float, float]:
    """Wilson interval at a proportion that need not be a whole number of successes."""
    z = float(sps.norm.ppf(0.5 + confidence / 2))
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(max(0.0, p * (1 - p) / n + z * z / (4 * n * n)))
    return max(0.0, centre - half), min(1.0, centre + half)


def _around(value: float, low: float, high: float) -> tuple[float, float]:
    """The interval, widened by the rounding error that may leave its own estimate just outside."""
    return min(low, value), max(high, value)


def newcombe_paired(
    both: float, first: float, second: float, neither: float, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Interval of p1 - p2 for paired proportions: Newcombe's square-and-add with Wilson limits.

    both, first, second, neither: counts (or mean counts) of the four pair outcomes.
    Source: [newcombe1998paired] method 10 without its continuity correction.
    """
    n = both + first + second + neither
    p1, p2 = (both + first) / n, (both + second) / n
    low1, high1 = _wilson_at(p1, round(n), confidence)
    low2, high2 = _wilson_at(p2, round(n), confidence)
    spread = (both + first) * (second + neither) * (both + second) * (first + neither)
    phi = (both * neither - first * second) / sqrt(spread) if spread > 0 else 0.0
    d = p1 - p2

    def arm(a: float, b: float) -> float:
        return sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    return max(-1.0, d - arm(p1 - low1, high2 - p2)), min(1.0, d + arm(high1 - p1, p2 - low2))


def _two_way_half_width(x: np.ndarray, confidence: float) -> float:
    """Half width of the mean of a (seeds, examples) table in which both are sampled.

    Seeds and examples are crossed: every victim sees the same images. The variance adds the
    between-seed and the between-example parts (the pigeonhole form, slightly conservative), and
    Student's t with seeds - 1 degrees of freedom allows for few seeds.
    """
    k, n = x.shape
    between_seeds = float(np.var(x.mean(1), ddof=1)) / k
    between_examples = float(np.var(x.mean(0), ddof=1)) / n if n > 1 else 0.0
    t = float(sps.t.ppf(0.5 + confidence / 2, k - 1))
    return t * sqrt(between_seeds + between_examples)


def rate(outcomes: np.ndarray, confidence: float = CONFIDENCE) -> Estimate:
    """A proportion from a (seeds, examples) table of booleans.

    One seed: Wilson. More: two-way Student t, never narrower than Wilson on the distinct examples.
    """
    x = np.atleast_2d(np.asarray(outcomes, dtype=np.float64))
    k, n = x.shape
    p = float(x.mean())
    low, high = _around(p, *_wilson_at(p, n, confidence))
    if k == 1:
        return Estimate(p, low, high, n, 1, "wilson", confidence)
    half = _two_way_half_width(x, confidence)
    low, high = max(0.0, min(low, p - half)), min(1.0, max(high, p + half))
    return Estimate(p, low, high, n, k, "two-way-t", confidence)


def paired_difference(first: np.ndarray, second: np.ndarray, confidence: float = CONFIDENCE) -> Estimate:
    """mean(first) - mean(second) for two (seeds, examples) tables of booleans on the same cells.

    One seed: Newcombe's paired interval; where no pair differs, which gives that one no width, the Wilson
    limit of no such pair among n, on both sides. More: two-way Student t on the differences, never narrower
    than Newcombe's at the mean counts.
    """
    a = np.atleast_2d(np.asarray(first, dtype=np.float64))
    b = np.atleast_2d(np.asarray(second, dtype=np.float64))
    if a.shape != b.shape:
        raise ValueError(f"expected tables of one shape, got {a.shape} and {b.shape}")
    k, n = a.shape
    d = float(a.mean() - b.mean())
    both, first_only, second_only, neither = (
        float((u * v).sum()) / k for u, v in ((a, b), (a, 1 - b), (1 - a, b), (1 - a, 1 - b))
    )
    low, high = _around(d, *newcombe_paired(both, first_only, second_only, neither, confidence))
    if first_only + second_only == 0:
        most = _wilson_at(0.0, n, confidence)[1]
        low, high = -most, most
    if k == 1:
        return Estimate(d, low, high, n, 1, "newcombe-paired", confidence)
    half = _two_way_half_width(a - b, confidence)
    low, high = max(-1.0, min(low, d - half)), min(1.0, max(high, d + half))
    return Estimate(d, low, high, n, k, "two-way-t-paired", confidence)


def spread(outcomes: np.ndarray) -> Estimate:
    """Sample standard deviation, over the seeds, of the means of a (seeds, examples) table."""
    means = np.asarray(outcomes, dtype=np.float64).mean(1)
    return Estimate(float(means.std(ddof=1)), None, None, len(means), len(means), "sample sd over victims")


def across_cells(estimates: Sequence[Estimate], confidence: float = CONFIDENCE) -> Estimate:
    """The mean of one metric over cells that differ in their seed alone.

    The cells share their test examples, so to the between-cell variance of the mean is added the mean
    within-cell variance, read off the cells' own intervals. Student's t with cells - 1 degrees.
    """
    values = [e.value for e in estimates]
    k, mean = len(values), float(np.mean(values))
    first = estimates[0]
    if k == 1:
        return first
    z = float(sps.norm.ppf(0.5 + confidence / 2))
    within = [
        ((e.high - e.low) / (2 * z)) ** 2 for e in estimates if e.low is not None and e.high is not None
    ]
    if len(within) < k:
        return Estimate(mean, None, None, first.n, k, "mean-of-cells", confidence)
    t = float(sps.t.ppf(0.5 + confidence / 2, k - 1))
    half = t * sqrt(float(np.var(values, ddof=1)) / k + float(np.mean(within)))
    lowest = -1.0 if any(e.low is not None and e.low < 0 for e in estimates) or mean < 0 else 0.0
    # Counts of queries and losses in nats are no fractions: nothing bounds them above.
    highest = inf if any(e.high is not None and e.high > 1 for e in estimates) else 1.0
    return Estimate(
        mean, max(lowest, mean - half), min(highest, mean + half), first.n, k, "t-over-cells", confidence
    )
