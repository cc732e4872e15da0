"""SPECTRE: its core against planted spikes, closed forms and the ports that get it wrong; the defence as a whole."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import ortho_group, spearmanr

from defenses.poisoning import _robust_covariance as robust
from defenses.poisoning import spectre as defence
from defenses.poisoning._by_label import most_suspicious
from defenses.poisoning._spectre import (
    covariance,
    fit_spectre,
    highest,
    principal,
    que_scores,
    que_weight,
    spectre,
)
from redteam.core.errors import ConfigError, DataError, InputError, RedteamError
from redteam.data.toys import stripes_dataset
from redteam.learn.nouns import TrainingSet
from redteam.threats.poisoning.federation.nouns import Round, Setting
from tests.conftest import context
from tests.defenses.poisoning.spikes import elementwise_scores, frobenius_scores, planted, recall, whitened

CLOSE = {"rtol": 1e-6, "atol": 1e-8}


def small(seed: int, n: int = 300, poisons: int = 20, k: int = 5, shift: float = 6.0):
    return planted(seed, shift, k=k, clean=n, poisons=poisons)


# ---------------------------------------------------------------- scores


def test_weight_in_closed_form():
    """One direction of variance 3, the rest white: e^4 there and e^0 elsewhere, over their sum."""
    s = np.diag([3.0, 1.0, 1.0])
    e4 = np.exp(4.0)
    assert np.allclose(que_weight(s), np.diag([e4, 1, 1]) / (e4 + 2))
    q = ortho_group.rvs(3, random_state=0)
    assert np.allclose(que_weight(q @ s @ q.T), q @ que_weight(s) @ q.T)
    assert np.allclose(que_weight(np.eye(4)), np.eye(4) / 4)
    assert np.allclose(que_weight(0.5 * np.eye(4)), np.eye(4) / 4)
    assert que_weight(np.array([[7.0]])) == 1


@given(st.integers(0, 10_000))
@settings(max_examples=20)
def test_weight_is_positive_and_of_trace_one(seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((30, 4)) * rng.uniform(0.1, 3, 4)
    spread = covariance(x, ddof=1)
    weight = que_weight(spread)
    assert np.isclose(np.trace(weight), 1) and np.allclose(weight, weight.T)
    values = np.linalg.eigvalsh(spread)
    excess = np.max(values) - 1
    exact = softmax(4 * values / excess) if excess > 1e-9 else np.full(4, 1 / 4)  # positive, of sum one
    assert np.allclose(np.linalg.eigvalsh(weight), exact, rtol=1e-6, atol=1e-14)  # may be below rounding
    assert (que_scores(x) >= 0).all()


def test_expm_beats_the_ports_on_white_data():
    """Poisons N(2.5 u, 0.4 I): 0.71, where the ports get 0.16 and nothing (scripts/planted_spikes.py, 20 seeds)."""
    rows = []
    for seed in range(8):
        data = planted(seed, 2.5, variance=0.4)
        x = data.features
        scores = (data.optimum(), que_scores(x), elementwise_scores(x), frobenius_scores(x))
        rows.append([recall(s, data.poisoned) for s in scores])
    best, ours, elementwise, frobenius = np.mean(rows, 0)
    assert best > 0.9 and abs(ours - 0.71) < 0.05
    assert elementwise < 0.25 and frobenius < 0.01


def test_whole_method_against_ports_and_optimum():
    rows = []
    for seed in range(4):
        data = planted(seed, 4.75)
        found = spectre(data.features, 250, ks=[16])
        white = whitened(data.features, found.selected)
        scores = (data.optimum(), found.scores, elementwise_scores(white), frobenius_scores(white))
        rows.append([recall(s, data.poisoned) for s in scores])
    best, ours, elementwise, frobenius = np.mean(rows, 0)
    assert best - ours < 0.03 and elementwise < ours - 0.2 and frobenius < ours - 0.4


def test_scores_follow_the_likelihood_ratio_for_a_spread_spike():
    """Poisons with the same mean and a larger variance along u: the optimum is the squared projection on u."""
    rng = np.random.default_rng(0)
    u = np.linalg.qr(rng.standard_normal((6, 6)))[0][:, 0]
    x = rng.standard_normal((2000, 6))
    x[:100] += 9 * rng.standard_normal((100, 1)) * u
    found = spectre(x, 100, ks=[6])
    assert spearmanr(np.sort((x @ u) ** 2)[-40:], found.scores[np.argsort((x @ u) ** 2)][-40:])[0] > 0.98
    assert not found.selected[np.argsort((x @ u) ** 2)[-20:]].any()


@given(st.integers(0, 10_000), st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
@settings(max_examples=15)
def test_shifts_rotations_and_scale_change_no_score(seed, shift, scale):
    data = small(seed)
    x = data.features
    q = ortho_group.rvs(x.shape[1], random_state=seed)
    first = spectre(x, 20)
    for other in (x + shift, x @ q, scale * x):
        again = spectre(other, 20)
        assert again.k == first.k and np.array_equal(again.selected, first.selected)
        assert np.allclose(again.scores, first.scores, **CLOSE)
        assert np.isclose(again.suspicion, first.suspicion)


@given(st.integers(0, 10_000))
@settings(max_examples=15)
def test_the_order_of_rows_does_not_matter(seed):
    x = small(seed).features
    order = np.random.default_rng(seed).permutation(len(x))
    first, again = spectre(x, 20), spectre(x[order], 20)
    assert np.allclose(again.scores, first.scores[order], **CLOSE)
    assert np.array_equal(again.selected, first.selected[order])


def test_more_columns_than_rows_are_a_rotation(monkeypatch):
    """Fifty rows in 9216 columns score as the same rows in their own span, whichever way components are found."""
    data = planted(3, 8.0, k=12, clean=40, poisons=10)
    wide = data.features @ ortho_group.rvs(9216 // 256, random_state=0)[:12] @ np.eye(36, 9216) + 5
    first, again = spectre(data.features, 10, ks=[6]), spectre(wide, 10, ks=[6])
    assert np.allclose(first.scores, again.scores, **CLOSE)
    monkeypatch.setattr("defenses.poisoning._spectre._EXACT", 5)
    assert np.allclose(spectre(wide, 10, ks=[6]).scores, again.scores, **CLOSE)


def test_the_sign_of_a_component_changes_nothing(monkeypatch):
    x = small(0).features
    first = spectre(x, 20).scores

    def flipped(features, most):
        mean, basis = principal(features, most)
        return mean, basis * np.where(np.arange(basis.shape[1]) % 2, 1, -1)

    monkeypatch.setattr("defenses.poisoning._spectre.principal", flipped)
    assert np.allclose(spectre(x, 20).scores, first, **CLOSE)
    # The port's do change, which is what this test is for.
    signs = np.array([1, -1, 1, -1, 1])
    assert not np.allclose(elementwise_scores(x), elementwise_scores(x * signs))


# ---------------------------------------------------------------- robust covariance


@pytest.mark.parametrize("k", [2, 5, 9])
def test_fourth_moment_against_the_written_out_matrix(k):
    x = small(1, k=k).features
    y = x @ robust.inverse_root(x.T @ x / len(x))
    z = np.einsum("ni,nj->nij", y, y).reshape(len(y), -1)
    full = z.T @ z / len(y) - np.outer(np.eye(k).ravel(), np.eye(k).ravel())
    values, vectors = np.linalg.eigh(full)
    for top in (robust.dense_top, robust.matrix_free_top, robust.gram_top):
        value, v = top(y)
        assert np.isclose(value, values[-1], rtol=1e-6) and np.isclose(np.linalg.norm(v), 1)
        assert np.isclose(abs((v.ravel() * vectors[:, -1]).sum()), 1, atol=1e-5)
        assert np.allclose(v, v.T)


def test_eigenvalues_of_a_gaussian_are_two():
    y = np.random.default_rng(0).standard_normal((200_000, 3))
    assert abs(robust.fourth_moment_top(y)[0] - 2) < 0.1


def test_selection_drops_outliers_first_and_at_most_twice_as_many():
    data = small(0, n=1000, poisons=40, shift=9.0)
    kept = robust.robust_selection(data.features - data.features.mean(0), 40)
    assert (~kept).sum() <= 80 and (~kept)[data.poisoned].mean() > 0.6
    assert (~kept)[~data.poisoned].mean() < 0.01
    clean = np.random.default_rng(0).standard_normal((1000, 5))
    assert robust.robust_selection(clean, 40).all()


def test_far_rows_are_dropped_before_anything_else():
    x = np.random.default_rng(0).standard_normal((500, 3))
    x[:4] *= 1e4
    kept = robust.robust_selection(x, 5)
    assert not kept[:4].any()
    assert (~robust.robust_selection(x, 1)).sum() == 2


@given(st.integers(1, 60), st.floats(0, 200))
def test_at_least_half_is_kept(n, poisons):
    x = np.random.default_rng(n).standard_t(1, (n, 2))
    kept = robust.robust_selection(x, poisons)
    assert 2 * kept.sum() >= n and (~kept).sum() <= round(2 * poisons)


# ---------------------------------------------------------------- degenerate data


def test_one_component_is_the_squared_distance_along_it():
    x = np.random.default_rng(0).standard_normal((200, 4)) * np.array([5, 1, 1, 1])
    found = spectre(x, 10, ks=[1])
    _, basis = principal(x, 1)
    along = x @ basis[:, 0]
    centred = along - along[found.selected].mean()
    assert found.k == 1 and np.allclose(found.scores, centred**2 / along[found.selected].var(), **CLOSE)


def test_no_poisons_none_removed_and_lengths_for_scores():
    x = small(0).features
    found = spectre(x, 0, ks=[5])
    white = (x - x.mean(0)) @ robust.inverse_root(covariance(x))
    assert found.selected.all() and np.allclose(found.scores, np.square(white).sum(1) / 5, **CLOSE)
    assert np.isclose(found.suspicion, 1, atol=0.01)
    assert fit_spectre(x, 0).threshold == np.inf


@pytest.mark.parametrize("ks", [None, (1,), (3,), (100,)])
@pytest.mark.parametrize(
    "x",
    [
        np.zeros((20, 6)),
        np.full((30, 3), 1e3) + np.arange(3) / 7,
        np.ones((1, 4)),
        np.random.default_rng(0).standard_normal((2, 4)),
        np.random.default_rng(0).standard_normal((40, 2)) @ np.ones((2, 50)),
        np.repeat(np.random.default_rng(0).standard_normal((5, 8)), 20, 0),
        np.random.default_rng(0).standard_normal((50, 9216)).astype(np.float32),
        np.eye(30),
        np.r_[np.zeros((29, 4)), np.ones((1, 4))],
    ],
    ids=["zeros", "constant", "one row", "two rows", "rank 1", "duplicates", "wide", "identity", "one other"],
)
@pytest.mark.parametrize("poisons", [0, 0.4, 5, 1000])
def test_degenerate_data_give_finite_scores(x, ks, poisons):
    found = spectre(x, poisons, ks=ks)
    assert found.scores.shape == (len(x),) and np.isfinite(found.scores).all()
    assert np.isfinite(found.suspicion)
    assert found.selected.any() and 1 <= found.k <= max(1, min(x.shape))


def test_one_row_unlike_all_others_is_found():
    x = np.r_[np.zeros((29, 4)), np.ones((1, 4))]
    assert spectre(x, 1).scores.argmax() == 29


def test_duplicates_share_their_score():
    x = np.repeat(small(0, n=100, poisons=8).features, 2, 0)
    scores = spectre(x, 16).scores
    assert np.allclose(scores[::2], scores[1::2], **CLOSE)


def test_bad_features_are_refused():
    for x in (np.zeros((0, 3)), np.zeros(3)):
        with pytest.raises(DataError, match="SPECTRE"):
            spectre(x, 1)
    # Of a classifier that diverged: a run that failed, no input that is wrong.
    with pytest.raises(RedteamError, match="expected finite features") as found:
        spectre(np.array([[1.0, np.nan]]), 1)
    assert not isinstance(found.value, InputError)


def test_fitted_scores_its_own_samples_and_others():
    data, later = small(0), small(0, n=400)
    fitted = fit_spectre(data.features, 20)
    assert np.allclose(fitted.score(data.features), fitted.found.scores, **CLOSE)
    assert (fitted.score(data.features) >= fitted.threshold).sum() == 30
    assert recall(fitted.score(later.features), later.poisoned) > 0.9


def test_same_input_same_bytes():
    x = planted(0, 5.0, k=20, clean=400, poisons=20).features
    assert spectre(x, 20).scores.tobytes() == spectre(x, 20).scores.tobytes()


def test_poisoned_label_stands_out_from_clean_ones():
    poisoned = [spectre(small(s, n=400).features, 20).suspicion for s in range(5)]
    clean = [spectre(small(s, n=420, poisons=0).features, 20).suspicion for s in range(5)]
    assert min(poisoned) > max(clean)
    assert most_suspicious({0: 1.0, 1: 3.0, 2: 3.0, 3: 2.0}, 2) == (1, 2)


def test_highest_takes_the_first_of_equals_and_no_more_than_there_are():
    assert np.flatnonzero(highest(np.array([1.0, 2.0, 2.0, 0.0]), 1)).tolist() == [1]
    assert highest(np.zeros(3), 9).all() and not highest(np.zeros(3), 0).any()


# ---------------------------------------------------------------- the defence, centralised


def poisoned_data(count: int = 16):
    """Stripes of three classes; `count` rows of class 2 wear a patch and are given class 0."""
    data = stripes_dataset(n=360)
    images, labels = data.train.images.copy(), data.train.labels.copy()
    rows = np.flatnonzero(labels == 2)[:count]
    images[rows, :4, :4], labels[rows] = 255, 0
    return TrainingSet(images, labels), rows


def config(**changes):
    return defence.Config(**{"poisons": 16, "label": 0, **changes})


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A context that keeps finished trainings, so that the same backbone is trained once for the module."""
    return context(stage_dir=tmp_path_factory.mktemp("stages"))


def test_whole_defence_finds_patches_and_leaves_them_out(target, stored):
    data, rows = poisoned_data()
    (model,) = defence.SPEC.run(target, config(), stored).fit(data, [0], stored)
    v = model.verdicts
    assert v.removed.sum() == 24 and v.removed[rows].mean() > 0.8
    assert np.array_equal(np.isnan(v.scores), data.targets != 0)
    assert v.notes["looked_at"] == [0] and v.trained > 0
    assert model.logits(data.images[:3]).shape == (3, 3)


def test_labels_suspected_all_and_a_number_that_is_wrong(target, stored):
    data, rows = poisoned_data()

    def verdicts(**changes):
        return defence.SPEC.run(target, config(label=None, **changes), stored).inspect(
            target, data, 0, stored
        )

    suspected = verdicts(labels="suspected", suspects=1)
    assert suspected.notes["looked_at"] == [0] and suspected.removed[rows].mean() > 0.8
    every = verdicts(labels="all", factor=0.5)
    assert [int(every.removed[data.targets == label].sum()) for label in range(3)] == [12, 12, 12]
    assert not np.isnan(every.scores).any()


def test_bad_settings_and_nothing_left(target, stored):
    data, _ = poisoned_data()
    with pytest.raises(ConfigError, match="label"):
        defence.SPEC.run(target, config(label=9), stored).fit(data, [0], stored)
    with pytest.raises(ConfigError, match="poisons"):
        defence.SPEC.run(target, config(poisons=None), stored).fit(data, [0], stored)
    with pytest.raises(RedteamError, match="fewer poisons"):
        defence.SPEC.run(target, config(labels="all", poisons=300), stored).fit(data, [0], stored)


def test_a_label_that_never_occurs(target, ctx):
    data, _ = poisoned_data()
    rest = TrainingSet(data.images[data.targets != 0], data.targets[data.targets != 0])
    verdicts = defence.SPEC.run(target, config(), ctx).inspect(target, rest, 0, ctx)
    assert not verdicts.removed.any() and np.isnan(verdicts.scores).all()


# ---------------------------------------------------------------- the rule of a federation


def federated_round(k: int = 30, malicious: int = 6, classes: int = 3, weights: torch.Tensor | None = None):
    """A round in which the last clients report representations of label 0 that are shifted, and such updates."""
    rng = np.random.default_rng(0)
    tables = rng.standard_normal((classes, k, 8))
    tables[0, -malicious:] += 8
    counts = torch.full((classes, k), 5)
    updates = torch.from_numpy(tables[0] @ rng.standard_normal((8, 40))).float()
    learner = SimpleNamespace(
        classes=classes,
        represent=lambda params, label: (torch.from_numpy(tables[label]).float(), counts[label]),
    )
    return Round(
        index=0, params=torch.zeros(40), clients=np.arange(k), updates=updates, learner=learner,
        weights=torch.ones(k) if weights is None else weights, generator=torch.Generator(),
    ), tables, counts  # fmt: skip


def rule(**changes) -> defence.Filter:
    return defence.Filter(config(**{"poisons": 20, **changes}), 100)


@pytest.mark.parametrize(
    "changes",
    [{}, {"space": "update"}, {"labels": "all"}, {"labels": "suspected", "suspects": 1}],
    ids=str,
)
def test_rule_leaves_out_the_clients_that_stand_out(changes):
    before, _, _ = federated_round()
    after = rule(**changes)(before)
    assert (after.weights == 0).sum() == 9 and not after.weights[-6:].any()
    assert after.scores.shape == (30,) and after.scores.dtype == torch.float32
    assert bool((before.weights == 1).all()), "the round that came in is as it was"


def test_rule_with_a_fixed_number_of_components():
    """In several dimensions fourth moments show a tenth of clients, and not a fifth: the limit of the method."""
    before, _, _ = federated_round(malicious=2)
    after = rule(k=4, poisons=7)(before)
    assert (after.weights == 0).sum() == 3 and not after.weights[-2:].any()


def test_clients_without_the_label_stay_and_have_no_score():
    before, tables, counts = federated_round()
    tables[0, :3], counts[0, :3] = np.nan, 0
    after = rule()(before)
    assert bool((after.weights[:3] == 1).all()) and bool(after.scores[:3].isnan().all())
    assert not after.weights[-6:].any()
    counts[:] = 0
    nobody = rule(labels="all")(before)
    assert bool((nobody.weights == 1).all()) and bool(nobody.scores.isnan().all())


def test_a_report_that_is_not_finite_goes_too():
    before, tables, _ = federated_round()
    tables[0, 0] = np.inf
    after = rule()(before)
    assert after.weights[0] == 0 and not after.weights[-6:].any() and (after.weights == 0).sum() == 10


def test_clients_that_an_earlier_rule_left_out_are_not_looked_at():
    weights = torch.ones(30)
    weights[-2:] = 0
    before, _, _ = federated_round(weights=weights)
    after = rule()(before)
    assert bool(after.scores[-2:].isnan().all()) and not after.weights[-6:].any()
    nothing = replace(before, weights=torch.zeros(30))
    assert not rule()(nothing).weights.any() and not rule(space="update")(nothing).weights.any()


def test_all_flagged_leaves_nobody_and_no_poison_leaves_everybody():
    before, _, _ = federated_round()
    assert not rule(poisons=100)(before).weights.any()
    assert bool((rule(poisons=0)(before).weights == 1).all())


def test_joint_scores_give_no_say_to_labels_where_nobody_stands_out():
    def look(scores, suspicion):
        return defence._Look(np.array(scores), suspicion, np.zeros(len(scores), bool))

    joint = defence.joint_scores([look([1.0, 1.1, 9.0, np.nan], 5.0), look([np.nan, 3.0, 2.9, np.nan], 1.0)])
    assert np.isnan(joint[3]) and np.nanargmax(joint) == 2
    assert np.allclose(joint[:3], [5 / 1.1, 5, 45 / 1.1])
    assert np.array_equal(defence.joint_scores([look([0.0, 0.0], 1.0), look([0.0, 0.0], 1.0)]), np.zeros(2))


def test_federations_get_the_rule():
    made = {}

    class Fake:
        kind, train, facts, rows = "federation", None, None, None
        config = SimpleNamespace(clients=100)

        def fit(self, malicious, seeds, ctx): ...
        def at(self, images, round): ...
        def fingerprint(self): ...
        def behind(self, name, settings, make):
            setting = Setting(classes=3, per_round=30, rounds=2, server_lr=1.0)
            made.update(name=name, settings=settings, rule=make(setting))

    defence.SPEC.run(Fake(), config(poisons=20), None)
    assert made["name"] == f"spectre {defence.SPEC.version}" and made["settings"]["poisons"] == 20
    assert (made["rule"](federated_round()[0]).weights == 0).sum() == 9
