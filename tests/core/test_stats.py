"""Intervals against closed forms, a reference implementation, and their own coverage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as sps

from redteam.record import Metric
from redteam.stats import (
    Estimate,
    _wilson_at,
    across_cells,
    newcombe_paired,
    paired_difference,
    rate,
    spread,
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
