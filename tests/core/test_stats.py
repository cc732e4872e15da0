"""Intervals against closed forms, a reference implementation, and their own coverage."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as sps

from redteam.core.record import Metric
from redteam.core.stats import (
    Estimate,
    _wilson_at,
    across_cells,
    newcombe_paired,
    over_strata,
    paired_difference,
    rate,
    spread,
    two_way_clustered,
    two_way_clustered_contrast,
    two_way_clustered_difference,
    wilson,
)


def test_wilson_closed_form_at_zero():
    """With no success the interval is [0, z^2 / (n + z^2)]."""
    z2 = sps.norm.ppf(0.975) ** 2
    low, high = wilson(0, 50)
    assert low == 0
    assert high == pytest.approx(z2 / (50 + z2), abs=1e-12)


@given(st.integers(1, 500), st.data())
def test_wilson_at_a_whole_count_is_scipys(n, data):
    k = data.draw(st.integers(0, n))
    assert _wilson_at(k / n, n, 0.95) == pytest.approx(wilson(k, n), abs=1e-9)


def test_wilson_refuses_impossible_counts():
    with pytest.raises(ValueError, match="successes <= n"):
        wilson(5, 4)


def test_newcombe_without_correlation_is_the_unpaired_interval():
    """At phi = 0 the paired interval is the two-sample one of equal sizes: sqrt of summed squares."""
    both, first, second, neither = 12, 18, 8, 12  # both * neither == first * second
    n, p1, p2 = 50, 0.6, 0.4
    (l1, u1), (l2, u2) = _wilson_at(p1, n, 0.95), _wilson_at(p2, n, 0.95)
    low, high = newcombe_paired(both, first, second, neither)
    assert low == pytest.approx(p1 - p2 - np.hypot(p1 - l1, u2 - p2), abs=1e-12)
    assert high == pytest.approx(p1 - p2 + np.hypot(u1 - p1, p2 - l2), abs=1e-12)


@given(*[st.integers(0, 60)] * 4)
def test_newcombe_is_antisymmetric_and_holds_its_estimate(both, first, second, neither):
    n = both + first + second + neither
    if n == 0:
        return
    low, high = newcombe_paired(both, first, second, neither)
    mirrored = newcombe_paired(both, second, first, neither)
    assert (-high, -low) == pytest.approx(mirrored, abs=1e-12)
    assert low - 1e-12 <= (first - second) / n <= high + 1e-12


def test_newcombe_covers_correlated_pairs():
    """Coverage of 2000 simulated tables with true difference 0.2 lies within 0.93 to 0.98."""
    rng = np.random.default_rng(1)
    tables = rng.multinomial(80, [0.3, 0.25, 0.05, 0.4], 2000)
    hits = sum(low <= 0.2 <= high for low, high in (newcombe_paired(*t) for t in tables))
    assert 0.93 <= hits / 2000 <= 0.98


def test_one_seed_is_wilson():
    e = rate(np.array([True] * 3 + [False] * 7))
    assert (e.value, e.n, e.seeds, e.method) == (0.3, 10, 1, "wilson")
    assert (e.low, e.high) == pytest.approx(wilson(3, 10))


def test_identical_seeds_gain_nothing():
    """Victims that agree on every image tell no more than one of them."""
    one = rate(np.array([True] * 30 + [False] * 70))
    three = rate(np.tile([True] * 30 + [False] * 70, (3, 1)))
    assert three.low <= one.low and three.high >= one.high


def test_seed_interval_covers_when_seeds_and_images_vary():
    """400 draws of a crossed design: the interval of the mean covers the truth at least 93 times in 100."""
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(400):
        p = np.clip(0.4 + 0.15 * rng.normal(size=(5, 1)) + 0.2 * rng.normal(size=(1, 300)), 0.01, 0.99)
        e = rate(rng.random((5, 300)) < p)
        hits += e.low <= 0.4 <= e.high
    assert hits / 400 >= 0.93


def test_paired_difference_of_a_table_with_itself_is_zero():
    x = np.random.default_rng(0).random((3, 50)) < 0.4
    e = paired_difference(x, x)
    assert e.value == 0 and e.low <= 0 <= e.high
    with pytest.raises(ValueError, match="one shape"):
        paired_difference(x, x[:, :10])


@pytest.mark.parametrize("value", [0, 1])
def test_all_or_nothing_makes_a_valid_metric_at_every_n(value):
    """Rounding must not leave an estimate of exactly 0 or 1 outside its own interval."""
    for n in (*range(1, 400), 900, 1000, 2000, 9000, 10_000):
        x = np.full(n, value)
        for e in (rate(x), paired_difference(x, np.zeros(n))):
            m = Metric.of("pta", e)
            assert m.low <= m.value == value <= m.high


@settings(max_examples=50)
@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_rates_lie_in_their_intervals(seeds, n, seed):
    e = rate(np.random.default_rng(seed).random((seeds, n)) < 0.5)
    assert 0 <= e.low <= e.value <= e.high <= 1


def test_spread_is_the_sample_deviation_of_the_seed_means():
    x = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    assert spread(x).value == pytest.approx(0.5) and spread(x).n == 3


def test_across_cells_closed_form():
    """mean +- t sqrt(s^2/k + mean within-cell variance)."""
    cells = [Estimate(v, v - 0.098, v + 0.098, 100, 1, "wilson") for v in (0.3, 0.4, 0.5)]
    e = across_cells(cells)
    z = sps.norm.ppf(0.975)
    half = sps.t.ppf(0.975, 2) * np.sqrt(0.01 / 3 + (0.098 / z) ** 2)
    assert (e.value, e.seeds) == (pytest.approx(0.4), 3)
    assert e.high - e.value == pytest.approx(half)
    assert across_cells(cells[:1]) is cells[0]


# ---------------------------------------------------------------- two crossed clusterings


def crossed(profiles: int, tasks: int, per_pair: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Labels of a full crossing, `per_pair` outcomes each."""
    first, second = np.meshgrid(np.arange(profiles), np.arange(tasks), indexing="ij")
    return tuple(np.repeat(a.ravel(), per_pair) for a in (first, second))


def test_clusters_of_one_give_the_naive_standard_error():
    """V_first = V_second = V_both = s^2 / n, Student's t with n - 1 degrees."""
    x = np.array([0.1, 0.9, 0.3, 0.6, 0.2, 0.8, 0.4, 0.7])
    e = two_way_clustered(x, np.arange(8), np.arange(8)[::-1])
    half = sps.t.ppf(0.975, 7) * x.std(ddof=1) / np.sqrt(8)
    wide = _wilson_at(0.5, 8, 0.95)
    assert (e.value, e.n, e.seeds) == (0.5, 8, 1)
    assert (e.low, e.high) == pytest.approx((min(0.5 - half, wide[0]), max(0.5 + half, wide[1])))
    many = np.random.default_rng(0).random(400) < 0.3
    e = two_way_clustered(many, np.arange(400), np.arange(400))
    # The lower arm: Wilson's reaches further up.
    assert e.value - e.low == pytest.approx(sps.t.ppf(0.975, 399) * many.std(ddof=1) / 20, rel=1e-9)


def test_clustered_variance_by_hand():
    """Two profiles, two tasks, outcomes 1 1 / 1 0: the three parts written out."""
    x, first, second = np.array([1.0, 1, 1, 0]), np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    e = x - 0.75
    v_first = 2 * ((e[0] + e[1]) ** 2 + (e[2] + e[3]) ** 2) / 16
    v_second = 2 * ((e[0] + e[2]) ** 2 + (e[1] + e[3]) ** 2) / 16
    v_both = 4 / 3 * (e**2).sum() / 16
    half = sps.t.ppf(0.975, 1) * np.sqrt(v_first + v_second - v_both)
    got = two_way_clustered(x, first, second)
    assert got.method == "two-way-clustered-t"
    assert (got.low, got.high) == (pytest.approx(max(0, 0.75 - half)), 1.0)


def test_the_smaller_number_of_clusters_gives_the_degrees():
    rng = np.random.default_rng(9)
    first, second = crossed(40, 3, 2)
    x = rng.random(240) < np.clip(0.5 + 0.25 * np.array([-1, 0, 1])[second], 0, 1)
    e = x - x.mean()
    parts = [
        len(np.unique(c)) / (len(np.unique(c)) - 1) * (np.bincount(c, weights=e) ** 2).sum() / 240**2
        for c in (first, second, first * 3 + second)
    ]
    got = two_way_clustered(x, first, second)
    half = sps.t.ppf(0.975, 2) * np.sqrt(parts[0] + parts[1] - parts[2])
    assert got.high == pytest.approx(min(1, x.mean() + half))
    assert x.mean() - got.low == pytest.approx(min(x.mean(), half))


def test_asking_the_same_again_gains_nothing_when_clustered():
    """Rows that are copied within their cluster leave the clustered interval as it was."""
    rng = np.random.default_rng(3)
    first, second = crossed(20, 12)
    x = rng.random(240) < np.clip(0.5 + 0.3 * rng.normal(size=20)[first], 0, 1)
    once = two_way_clustered(x, first, second)
    copies = two_way_clustered(np.repeat(x, 9), np.repeat(first, 9), np.repeat(second, 9))
    assert (copies.low, copies.high) == pytest.approx((once.low, once.high), rel=1e-9)
    assert copies.high - copies.low > 2 * np.subtract(*wilson(int(9 * x.sum()), 9 * 240)[::-1])


def test_where_all_agree_the_pairs_are_the_sample():
    first, second = crossed(10, 8, 4)
    for value in (0, 1):
        e = two_way_clustered(np.full(320, value), first, second)
        assert (e.n, e.method) == (320, "wilson over pairs")
        assert (e.low, e.high) == pytest.approx(wilson(80 * value, 80))


def test_a_balanced_design_has_no_variance_between_clusters():
    """Every profile and every task has one half: V comes out below zero, and Wilson on the pairs stands in."""
    x, (first, second) = np.array([1, 0, 0, 1]), crossed(2, 2)
    assert two_way_clustered(x, first, second).method == "wilson over pairs"


def test_one_cluster_leaves_the_other_dimension_and_two_of_one_leave_wilson():
    rng = np.random.default_rng(4)
    first = np.repeat(np.arange(10), 20)
    x = rng.random(200) < np.clip(0.5 + 0.3 * rng.normal(size=10)[first], 0, 1)
    alone = two_way_clustered(x, first, np.zeros(200))
    sums = np.bincount(first, weights=x - x.mean())
    half = sps.t.ppf(0.975, 9) * np.sqrt(10 / 9 * (sums**2).sum()) / 200
    assert alone.high == pytest.approx(min(1, x.mean() + half))
    assert alone == two_way_clustered(x, np.zeros(200), first)
    both = two_way_clustered(x, np.zeros(200), np.zeros(200))
    assert both.method == "wilson"
    assert (both.low, both.high) == pytest.approx(wilson(int(x.sum()), 200))


def test_clusters_must_fit_the_outcomes():
    with pytest.raises(ValueError, match="cluster labels"):
        two_way_clustered(np.ones(3), np.ones(2), np.ones(3))
    with pytest.raises(ValueError, match="at least one outcome"):
        two_way_clustered(np.ones(0), np.ones(0), np.ones(0))


def test_clustered_intervals_cover_where_the_naive_one_does_not():
    """400 draws with effects of 30 profiles and 10 tasks on the logit; the truth is the grand mean."""
    rng = np.random.default_rng(5)
    first, second = crossed(30, 10)

    def draw() -> np.ndarray:
        logit = 0.3 + 0.7 * rng.normal(size=30)[first] + 0.7 * rng.normal(size=10)[second]
        return rng.random(300) < 1 / (1 + np.exp(-logit))

    truth = float(np.mean([draw().mean() for _ in range(20_000)]))
    hits = naive = 0
    for _ in range(400):
        x = draw()
        e, w = two_way_clustered(x, first, second), rate(x)
        hits += e.low <= truth <= e.high
        naive += w.low <= truth <= w.high
    assert hits / 400 > 0.90
    assert naive / 400 < 0.75


@settings(max_examples=80)
@given(st.integers(1, 60), st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_clustered_intervals_hold_their_estimate_in_any_order_and_under_any_names(n, a, b, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.random((2, n)) < rng.random()
    first, second = rng.integers(0, a, n), rng.integers(0, b, n)
    e = two_way_clustered(x, first, second)
    assert 0 <= e.low <= e.value <= e.high <= 1
    assert e.low <= _wilson_at(e.value, n, 0.95)[0] + 1e-12
    assert e.high >= _wilson_at(e.value, n, 0.95)[1] - 1e-12
    order, names = rng.permutation(n), np.array([f"p{k}" for k in rng.permutation(a)])
    mixed = two_way_clustered(x[order], names[first[order]], second[order])
    swapped = two_way_clustered(x, second, first)
    for other in (mixed, swapped):
        assert (other.low, other.high) == pytest.approx((e.low, e.high), abs=1e-9)
    d = two_way_clustered_difference(x, y, first, second)
    back = two_way_clustered_difference(y, x, first, second)
    assert (-back.high, -back.low) == pytest.approx((d.low, d.high), abs=1e-9)
    assert -1 <= d.low <= d.value <= d.high <= 1


def test_clustered_difference_of_singletons_is_students_and_of_equals_is_wilsons_limit():
    rng = np.random.default_rng(6)
    x, y = rng.random((2, 300)) < 0.5
    d = two_way_clustered_difference(x, y, np.arange(300), np.arange(300))
    half = sps.t.ppf(0.975, 299) * (x * 1.0 - y).std(ddof=1) / np.sqrt(300)
    assert d.high - d.value == pytest.approx(half, rel=0.02)
    first, second = crossed(15, 20)
    same = two_way_clustered_difference(x, x, first, second)
    assert (same.value, same.method) == (0, "wilson over pairs")
    assert same.high == -same.low == pytest.approx(wilson(0, 300)[1])
    none = two_way_clustered_difference(x, y, np.zeros(300), np.zeros(300))
    assert none == paired_difference(x, y)


def test_clustered_contrast_of_singletons_is_the_two_sample_interval():
    rng = np.random.default_rng(7)
    x, group = rng.random(500) < 0.4, rng.random(500) < 0.3
    e = two_way_clustered_contrast(x, group, np.arange(500), np.arange(500))
    p, q = x[group].mean(), x[~group].mean()
    se = np.sqrt(p * (1 - p) / group.sum() + q * (1 - q) / (~group).sum())
    assert e.value == pytest.approx(p - q)
    assert e.high - e.value == pytest.approx(sps.t.ppf(0.975, 499) * se, rel=0.02)
    nothing = two_way_clustered_contrast(np.zeros(9), np.arange(9) < 4, np.arange(9), np.zeros(9))
    assert nothing.method == "newcombe" and nothing.low == -wilson(0, 5)[1]
    with pytest.raises(ValueError, match="both sides"):
        two_way_clustered_contrast(x, np.ones(500), np.arange(500), np.arange(500))


def test_clustered_contrast_covers():
    """300 draws in which the difference is 0.2 and profiles have effects of their own."""
    rng = np.random.default_rng(8)
    first, second = crossed(30, 8)
    hits = 0
    for _ in range(300):
        group = (first + second) % 3 == 0
        p = 0.4 + 0.2 * group + rng.uniform(-0.3, 0.3, 30)[first] + rng.uniform(-0.1, 0.1, 8)[second]
        e = two_way_clustered_contrast(rng.random(240) < p, group, first, second)
        hits += e.low <= 0.2 <= e.high
    assert hits / 300 > 0.90


def test_over_strata_adds_errors_in_quadrature_and_no_spread_between_strata():
    """Of k strata of normal estimates with standard error s, the mean has s / sqrt(k), however far apart they lie."""
    far = [Estimate(v, v - 0.2, v + 0.2, 100, 3, "x") for v in (0.1, 0.5, 0.9, 0.5)]
    mean = over_strata(far)
    assert (mean.value, mean.low, mean.high) == pytest.approx((0.5, 0.4, 0.6))
    assert (mean.n, mean.seeds) == (400, 3)
    assert over_strata([far[0], replace(far[1], low=None, high=None)]).low is None
    rng = np.random.default_rng(0)
    truth, hits = np.array([0.2, 0.7, 0.4]), 0
    for _ in range(400):
        seen = [rate(rng.random(200) < p) for p in truth]
        pooled = over_strata(seen)
        hits += pooled.low <= truth.mean() <= pooled.high
    assert 0.92 <= hits / 400 <= 0.985, "coverage of a nominal 0.95"
