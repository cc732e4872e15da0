"""Metrics of filters against closed forms, brute force, scikit-learn, and what may change no value."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as sps
from sklearn.metrics import precision_score, recall_score, roc_auc_score

from redteam.core.stats import wilson
from redteam.threats.poisoning.filter_metrics import (
    auroc,
    filter_groups,
    filter_metrics,
    placements,
    removed_by_weight,
    retrain_cost,
)


def table(poisoned, removed, score=None, **columns):
    n = len(poisoned)
    return pd.DataFrame({
        "victim": 0, "index": np.arange(n), "poisoned": np.array(poisoned, bool), "removed": np.array(removed, bool),
        "score": np.full(n, np.nan) if score is None else np.array(score, np.float32), **columns,
    })  # fmt: skip


def one_stratum(scores, bad, unit=None):
    n = len(scores)
    unit = np.arange(n) if unit is None else unit
    return auroc(np.asarray(scores, float), np.asarray(bad, bool), np.zeros(n, int), np.asarray(unit))


def test_counted_by_hand():
    m = filter_metrics(table([1, 1, 1, 1, 0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 1, 0, 0, 0, 0, 0]))
    assert {k: (e.value, e.n) for k, e in m.items()} == {
        "filter_tpr": (3 / 4, 4), "filter_fpr": (1 / 6, 6), "filter_precision": (3 / 4, 4),
    }  # fmt: skip
    assert (m["filter_tpr"].low, m["filter_tpr"].high) == pytest.approx(wilson(3, 4))
    assert m["filter_tpr"].method == "wilson"


@pytest.mark.parametrize(
    ("poisoned", "removed", "score", "left"),
    [
        ([0, 0, 0], [1, 0, 0], [1, 2, 3], {"filter_fpr"}),
        ([1, 1, 0], [0, 0, 0], None, {"filter_tpr", "filter_fpr"}),
        ([1, 1, 1], [1, 0, 0], [1, 2, 3], {"filter_tpr", "filter_precision"}),
        ([1, 0, 0], [0, 0, 0], [np.nan, 2, 3], {"filter_tpr", "filter_fpr"}),
        ([1, 0, 0], [1, 0, 0], [4, 2, 3], {"filter_tpr", "filter_fpr", "filter_precision", "filter_auroc"}),
    ],
)
def test_what_is_undefined_is_left_out(poisoned, removed, score, left):
    assert set(filter_metrics(table(poisoned, removed, score))) == left


units = st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(-3, 3)), min_size=4, max_size=40)


@given(units)
def test_values_are_those_of_scikit_learn(rows):
    bad, gone, scores = (np.array(c) for c in zip(*rows, strict=True))
    m = filter_metrics(table(bad, gone, scores))
    if bad.any() and not bad.all():
        assert m["filter_auroc"].value == pytest.approx(roc_auc_score(bad, scores))
        assert m["filter_fpr"].value == pytest.approx(recall_score(~bad, gone))
    if bad.any() and gone.any():
        assert m["filter_tpr"].value == pytest.approx(recall_score(bad, gone))
        assert m["filter_precision"].value == pytest.approx(precision_score(bad, gone))
    for e in m.values():
        assert 0 <= e.low <= e.value <= e.high <= 1


@given(units, st.floats(0.1, 10), st.randoms())
def test_order_of_rows_and_rising_functions_of_the_score_change_nothing(rows, factor, random):
    bad, gone, scores = (np.array(c) for c in zip(*rows, strict=True))
    before = filter_metrics(table(bad, gone, scores))
    order = list(range(len(rows)))
    random.shuffle(order)
    after = filter_metrics(table(bad[order], gone[order], np.exp(factor * scores[order])))
    for name, e in before.items():
        assert (after[name].value, after[name].low) == pytest.approx((e.value, e.low)), name


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=12), st.lists(st.integers(0, 4), min_size=1, max_size=12)
)
def test_placements_by_brute_force(bad, good):
    lower, higher = placements(np.array(bad, float), np.array(good, float))
    wins = (np.array(bad)[:, None] > np.array(good)) + 0.5 * (np.array(bad)[:, None] == np.array(good))
    np.testing.assert_allclose(lower, wins.mean(1))
    np.testing.assert_allclose(higher, wins.mean(0))
    assert lower.mean() == pytest.approx(higher.mean())


def test_auroc_of_shifted_normals_and_its_interval_cover_the_truth():
    """AUROC of N(m, 1) against N(0, 1) is Phi(m / sqrt 2); 95 % intervals hold it 95 times in a hundred."""
    truth, rng, inside, widths = sps.norm.cdf(1 / np.sqrt(2)), np.random.default_rng(0), 0, []
    for _ in range(400):
        scores = np.concatenate([rng.normal(1, 1, 30), rng.normal(0, 1, 60)])
        e = one_stratum(scores, np.arange(90) < 30)
        inside += e.low <= truth <= e.high
        widths.append(e.high - e.low)
    assert 0.92 <= inside / 400 <= 0.98
    assert e.method == "delong-t" and 0.1 < np.mean(widths) < 0.25


def test_variance_is_delongs_for_one_stratum():
    rng = np.random.default_rng(1)
    x, y = rng.normal(1, 1, 12), rng.normal(0, 1, 20)
    e = one_stratum(np.concatenate([x, y]), np.arange(32) < 12)
    wins = x[:, None] > y
    delong = wins.mean(1).var(ddof=1) / 12 + wins.mean(0).var(ddof=1) / 20
    half = sps.t.ppf(0.975, 11) * np.sqrt(delong)
    assert e.value == pytest.approx(wins.mean()) and e.value - e.low == pytest.approx(half)


def test_a_perfect_order_still_has_a_width():
    e = one_stratum([3, 4, 1, 2, 0], [1, 1, 0, 0, 0])
    assert (e.value, e.high) == (1, 1) and e.low == pytest.approx(wilson(2, 2)[0])
    assert e.method == "wilson over disjoint pairs"


def test_scores_are_compared_within_a_given_label_only():
    # Label 1 scores high throughout: pooled, its clean rows would outrank the poison of label 0.
    t = table([1, 0, 1, 0], [0, 0, 0, 0], [2, 1, 12, 11], given=[0, 0, 1, 1])
    assert filter_metrics(t)["filter_auroc"].value == 1
    assert filter_metrics(t, within=())["filter_auroc"].value == 3 / 4
    # Pairs, not labels, weigh the same: 1 of 1 in order, 0 of 2.
    t = table([1, 0, 1, 0, 0], [0] * 5, [2, 1, 0, 5, 6], given=[0, 0, 1, 1, 1])
    assert filter_metrics(t)["filter_auroc"].value == pytest.approx(1 / 3)


def test_groups_by_given_label():
    t = table([1, 0, 1, 0], [1, 0, 0, 1], given=[0, 0, 7, 7])
    found = {k: e.value for k, e in filter_groups(t, "given").items()}
    assert found == {
        ("filter_tpr", "given=0"): 1, ("filter_fpr", "given=0"): 0, ("filter_precision", "given=0"): 1,
        ("filter_tpr", "given=7"): 0, ("filter_fpr", "given=7"): 1, ("filter_precision", "given=7"): 0,
    }  # fmt: skip


def test_several_victims_are_averaged_and_share_their_rows():
    first = table([1] * 10 + [0] * 10, [1] * 9 + [0] * 11)
    second = table([1] * 10 + [0] * 10, [1] * 5 + [0] * 15).assign(victim=1)
    third = table([1] * 10 + [0] * 10, [0] * 20).assign(victim=2)  # removed nothing: no precision
    m = filter_metrics(pd.concat([first, second, third]))
    assert m["filter_tpr"].value == pytest.approx((0.9 + 0.5 + 0) / 3) and m["filter_tpr"].seeds == 3
    assert m["filter_tpr"].method == "t-over-victims"
    assert m["filter_precision"].value == 1 and m["filter_precision"].seeds == 2
    alone = filter_metrics(first)["filter_tpr"]
    assert m["filter_tpr"].high - m["filter_tpr"].low > alone.high - alone.low


def appearances(rng, clients=60, rounds=40, per_round=20):
    """Clients 0 to 19 are bad; a client is removed, and scores, as its own nature has it, in every round alike."""
    nature = rng.random(clients)
    rows = [(r, c) for r in range(rounds) for c in rng.permutation(clients)[:per_round]]
    round_, client = np.array(rows).T
    bad, own = client < 20, nature[client]
    return table(bad, own + 0.2 * bad > 0.6, own + 0.2 * bad, round=round_, client=client)


def test_clients_that_come_again_are_not_new_evidence():
    t = appearances(np.random.default_rng(0))
    plain = filter_metrics(t, within=("round",))
    clustered = filter_metrics(t, within=("round",), clusters=("client", "round"))
    for name, e in clustered.items():
        assert e.value == pytest.approx(plain[name].value)
        assert e.high - e.low > 2 * (plain[name].high - plain[name].low), name


def test_clustered_auroc_covers_what_other_clients_would_give():
    rng, truth, inside = np.random.default_rng(1), 0.68, 0  # P(U + 0.2 > U') = 1 - 0.8**2 / 2
    for _ in range(100):
        e = filter_metrics(appearances(rng, rounds=10), within=("round",), clusters=("client", "round"))
        inside += e["filter_auroc"].low <= truth <= e["filter_auroc"].high
    assert inside >= 88


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=10))
def test_equal_weights_remove_nobody_and_zero_weights_do(weights):
    t = pd.DataFrame({"round": 3, "weight": np.array(weights, np.float32)})
    gone = removed_by_weight(t, ("round",))
    assert gone.tolist() == [w < 0.5 / len(weights) for w in t["weight"]]
    assert not removed_by_weight(t.assign(weight=1 / len(weights)), ("round",)).any()
    assert removed_by_weight(t.assign(weight=0.0), ("round",)).all()


def test_bad_tables_are_refused():
    with pytest.raises(ValueError, match="every row of client"):
        t = table([1, 0], [1, 0], round=[0, 0], client=[1, np.nan])
        filter_metrics(t, clusters=("client", "round"))


def test_retrain_cost():
    costs = pd.DataFrame({"victim": [0, 1], "trained": [300, 500], "base_trained": [100, 100]})
    assert retrain_cost(costs)["retrain_cost"].value == 4
    assert retrain_cost(costs.assign(base_trained=0)) == {} and retrain_cost(costs[:0]) == {}
