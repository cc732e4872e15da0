"""Intervals for rates, paired differences and repeated seeds. Pure functions of counts and arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt

import numpy as np
from scipy import stats as sps

CONFIDENCE = 0.95
# A sum of squares of residuals that cancel: rounding, not variance.
_NOTHING = 1e-15


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
    # A difference may fall below 0 even where none of its cells' intervals does.
    signed = mean < 0 or any("paired" in e.method or (e.low is not None and e.low < 0) for e in estimates)
    lowest = -1.0 if signed else 0.0
    # Counts of queries and losses in nats are no fractions: nothing bounds them above.
    highest = inf if any(e.high is not None and e.high > 1 for e in estimates) else 1.0
    return Estimate(
        mean, max(lowest, mean - half), min(highest, mean + half), first.n, k, "t-over-cells", confidence
    )


def over_strata(estimates: Sequence[Estimate], confidence: float = CONFIDENCE) -> Estimate:
    """The mean of one metric over given strata, such as tasks, each of one weight and with its own interval.

    The strata are these and no sample of others: errors within them add up in quadrature, each side by itself, and
    differences between strata widen nothing. No interval where one lacks its own.
    """
    k, mean = len(estimates), float(np.mean([e.value for e in estimates]))
    n, seeds = sum(e.n for e in estimates), min(e.seeds for e in estimates)
    arms = [
        (e.value - e.low, e.high - e.value) for e in estimates if e.low is not None and e.high is not None
    ]
    if len(arms) < k:
        return Estimate(mean, None, None, n, seeds, "mean over strata", confidence)
    down, up = (sqrt(sum(arm[i] ** 2 for arm in arms)) / k for i in (0, 1))
    return Estimate(mean, mean - down, mean + up, n, seeds, "stratified", confidence)


# ---------------------------------------------------------------- two crossed clusterings


def _clustered_variance(e: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[float, int]:
    """Variance of mean(e) for (n,) residuals correlated within either clustering, and its degrees of freedom.

    V_first + V_second - V_both, each with the factor G / (G - 1) for its G clusters. A clustering with one
    cluster says nothing; the other then stands alone. Both with one: no degrees of freedom.
    """

    def within(labels: np.ndarray) -> float:
        sums = np.bincount(labels, weights=e)
        clusters = len(sums)
        return float((sums**2).sum()) * clusters / (clusters - 1) / len(e) ** 2

    several = [labels for labels in (first, second) if labels.max() > 0]
    if not several:
        return 0.0, 0
    variance = sum(within(labels) for labels in several)
    if len(several) == 2:
        variance -= within(_pairs(first, second))
    return variance, int(min(labels.max() for labels in several))


def _codes(labels: np.ndarray) -> np.ndarray:
    """Cluster labels of any kind as 0, 1, ..."""
    return np.unique(np.asarray(labels), return_inverse=True)[1].reshape(-1)


def _pairs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return _codes(first.astype(np.int64) * (int(second.max()) + 1) + second)


def _check_clusters(n: int, *clusters: np.ndarray) -> None:
    if n < 1 or any(np.shape(c) != (n,) for c in clusters):
        raise ValueError(f"expected at least one outcome and ({n},) cluster labels for it")


def _t(confidence: float, degrees: int) -> float:
    return float(sps.t.ppf(0.5 + confidence / 2, degrees))


def two_way_clustered(
    values: np.ndarray,
    first_cluster: np.ndarray,
    second_cluster: np.ndarray,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """The mean of n outcomes in [0, 1] whose errors are correlated within either of two clusterings.

    values: (n,) in [0, 1]. first_cluster, second_cluster: (n,) labels, such as profile and task. Student's t
    with the smaller number of clusters - 1 degrees of freedom, never narrower than Wilson's on the n outcomes.
    Where all agree, or the variance comes out at or below zero, Wilson's on the number of distinct pairs.
    One cluster in one clustering: the other alone. One in both: Wilson's on the outcomes, and the method says so.

    Source: Cameron, Gelbach and Miller's multiway clustering with a factor G / (G - 1) each (remembered, not read).

    Raises:
        ValueError: no outcomes, or labels that are not one for each.
    """
    x = np.asarray(values, np.float64)
    n = len(x)
    _check_clusters(n, np.asarray(first_cluster), np.asarray(second_cluster))
    first, second = _codes(first_cluster), _codes(second_cluster)
    p = float(x.mean())
    low, high = _around(p, *_wilson_at(p, n, confidence))
    variance, degrees = _clustered_variance(x - p, first, second)
    if degrees == 0:
        return Estimate(p, low, high, n, 1, "wilson", confidence)
    if variance <= _NOTHING or np.ptp(x) == 0:
        low, high = _around(p, *_wilson_at(p, int(_pairs(first, second).max()) + 1, confidence))
        return Estimate(p, low, high, n, 1, "wilson over pairs", confidence)
    half = _t(confidence, degrees) * sqrt(variance)
    low, high = max(0.0, min(low, p - half)), min(1.0, max(high, p + half))
    return Estimate(p, low, high, n, 1, "two-way-clustered-t", confidence)


def two_way_clustered_difference(
    first: np.ndarray,
    second: np.ndarray,
    first_cluster: np.ndarray,
    second_cluster: np.ndarray,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """mean(first) - mean(second) of (n,) booleans on the same questions, clustered as `two_way_clustered`.

    Never narrower than Newcombe's paired interval on the n questions. Where no question differs, the Wilson
    limit of no such question among the distinct pairs of clusters, on both sides.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"expected outcomes of one shape, got {a.shape} and {b.shape}")
    _check_clusters(len(a), np.asarray(first_cluster), np.asarray(second_cluster))
    ones, twos = _codes(first_cluster), _codes(second_cluster)
    naive = paired_difference(a, b, confidence)
    low, high = naive.low or 0.0, naive.high or 0.0
    variance, degrees = _clustered_variance(a - b - naive.value, ones, twos)
    if degrees == 0:
        return naive
    pairs = int(_pairs(ones, twos).max()) + 1
    if not (a != b).any():
        most = _wilson_at(0.0, pairs, confidence)[1]
        return Estimate(0.0, -most, most, len(a), 1, "wilson over pairs", confidence)
    half = _t(confidence, degrees) * sqrt(max(0.0, variance))
    low, high = max(-1.0, min(low, naive.value - half)), min(1.0, max(high, naive.value + half))
    return Estimate(naive.value, low, high, len(a), 1, "two-way-clustered-t-paired", confidence)


def two_way_clustered_contrast(
    values: np.ndarray,
    group: np.ndarray,
    first_cluster: np.ndarray,
    second_cluster: np.ndarray,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Mean of the (n,) booleans in `group` minus the mean of those outside it, clustered as `two_way_clustered`.

    Never narrower than Newcombe's interval for two samples (square-and-add with Wilson limits).

    Raises:
        ValueError: as `two_way_clustered`; also if a side is empty.
    """
    x, inside = np.asarray(values, np.float64), np.asarray(group, bool)
    n = len(x)
    _check_clusters(n, inside, np.asarray(first_cluster), np.asarray(second_cluster))
    if inside.all() or not inside.any():
        raise ValueError("expected outcomes on both sides of the contrast")
    p, q = float(x[inside].mean()), float(x[~inside].mean())
    n1, n0 = int(inside.sum()), int((~inside).sum())
    (l1, u1), (l0, u0) = _wilson_at(p, n1, confidence), _wilson_at(q, n0, confidence)
    d = p - q
    low, high = d - sqrt((p - l1) ** 2 + (u0 - q) ** 2), d + sqrt((u1 - p) ** 2 + (q - l0) ** 2)
    # The linear part of the difference: each residual by its share of its own side.
    e = np.where(inside, (x - p) * n / n1, -(x - q) * n / n0)
    variance, degrees = _clustered_variance(e, _codes(first_cluster), _codes(second_cluster))
    method = "newcombe"
    if degrees > 0 and variance > _NOTHING:
        half, method = _t(confidence, degrees) * sqrt(variance), "two-way-clustered-t-contrast"
        low, high = min(low, d - half), max(high, d + half)
    return Estimate(d, max(-1.0, low), min(1.0, high), n, 1, method, confidence)
