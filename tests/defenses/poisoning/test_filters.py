"""k-NN agreement, small loss, confident learning, activation clustering, random removal: maths and whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defenses.poisoning import (
    activation_clustering,
    confident_learning,
    knn_agreement,
    random_removal,
    small_loss,
)
from defenses.poisoning._filtering import Filtering
from defenses.poisoning._ranked import ranked
from defenses.poisoning._told import Told, oracle, told
from redteam.core import registry
from redteam.core.device import Device
from redteam.core.errors import ConfigError, RedteamError, ThreatMismatchError
from redteam.data.toys import stripes_dataset
from redteam.learn.nouns import TrainingSet
from redteam.threats.poisoning.target import ImageTrainable
from tests.conftest import small_config


def blobs(n=120, d=8, classes=3, wrong=6, seed=0):
    """Well separated classes, the first `wrong` rows of class 0 labelled 1."""
    rng = np.random.default_rng(seed)
    true = np.repeat(np.arange(classes), n // classes)
    points = rng.normal(size=(n, d)) * 0.1 + np.eye(classes, d)[true] * 5
    given = true.copy()
    given[:wrong] = 1
    return points, given, np.arange(n) < wrong


def test_neighbours_disagree_with_planted_wrong_labels_alone():
    points, labels, wrong = blobs()
    scores = knn_agreement.disagreement(points, labels, 10)
    assert scores[wrong].min() > 0.4 and scores[~wrong].max() < scores[wrong].min()


def test_a_row_is_not_its_own_neighbour():
    points = np.array([[1.0, 0], [1, 0.01], [0, 1], [0.01, 1]])
    assert knn_agreement.disagreement(points, np.array([0, 1, 2, 2]), 1).tolist() == [1, 1, 0, 0]
    with pytest.raises(ConfigError, match="fewer than the 4"):
        knn_agreement.disagreement(points, np.zeros(4, int), 4)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_disagreement_knows_no_rotation_scale_or_order(seed):
    points, labels, _ = blobs(seed=seed)
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    order = rng.permutation(len(points))
    plain = knn_agreement.disagreement(points, labels, 7)
    # Rows at equal distance may change places by rounding: hence the mean.
    turned = knn_agreement.disagreement((3 * points @ turn)[order], labels[order], 7)
    assert np.abs(turned - plain[order]).mean() < 0.01


def test_losses_are_cross_entropies():
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
    assert np.allclose(small_loss.losses(logits, np.array([0, 2])), -np.log([0.5, 0.1]))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 60), st.floats(0.3, 2.0), st.sampled_from(["known", "all"]))
def test_ranked_filters_remove_as_many_as_told_and_the_worst(poisons, factor, labels):
    rng = np.random.default_rng(poisons)
    data = TrainingSet(np.zeros((200, 1, 1, 1), np.uint8), rng.integers(0, 3, 200))
    scores = rng.normal(size=200)
    config = Told(poisons=poisons, factor=factor, labels=labels, label=1)
    found = ranked(config, data, scores, 7)
    open_to = np.flatnonzero(data.targets == 1) if labels == "known" else np.arange(200)
    wanted = min(len(open_to), round(1.5 * factor * poisons))
    assert found.removed.sum() == wanted and found.trained == 7
    worst = open_to[np.argsort(-scores[open_to])[:wanted]]
    assert set(np.flatnonzero(found.removed)) == set(worst)
    assert np.isfinite(found.scores).sum() == len(open_to)


def test_cleanlab_finds_planted_wrong_labels_and_does_without_absent_classes():
    pytest.importorskip("cleanlab")
    _, labels, wrong = blobs()
    true = np.repeat(np.arange(3), 40)
    probabilities = np.full((120, 5), 0.02)
    probabilities[np.arange(120), true] = 0.92
    found, scores = confident_learning.issues(labels, probabilities, "prune_by_noise_rate")
    assert found[wrong].all() and not found[~wrong].any()
    assert scores[wrong].min() > scores[~wrong].max()


def planted(n, share, distance, seed):
    """n points of dimension 12, a share of them moved together; returns (points, moved)."""
    rng = np.random.default_rng(seed)
    moved = np.arange(n) < round(share * n)
    points = rng.normal(size=(n, 12))
    points[moved] += distance * np.ones(12) / np.sqrt(12)
    return points, moved


def test_a_small_distinct_cluster_is_cut_off():
    points, moved = planted(400, 0.15, 8.0, 0)
    cut = activation_clustering.cut_in_two(points, 10, 0)
    assert (cut.smaller == moved).mean() > 0.97 and cut.silhouette > 0.1 and 0.1 < cut.size < 0.2
    assert cut.nearer[moved].min() > np.median(cut.nearer[~moved])
    # What the card says of independent components, which is why they are not the default.
    assert (activation_clustering.cut_in_two(points, 10, 0, "ica").smaller == moved).mean() < 0.8


def test_one_cloud_gives_no_clean_cut_and_too_little_gives_none():
    points, _ = planted(400, 0.0, 0.0, 1)
    assert activation_clustering.cut_in_two(points, 10, 0).silhouette < 0.1
    assert activation_clustering.cut_in_two(points[:3], 10, 0) is None
    assert activation_clustering.cut_in_two(np.ones((50, 4)), 10, 0) is None


def test_told_fills_in_what_the_attack_is_and_says_so():
    target = whole()
    config = told(Told(), {"budget": 12, "target_class": 2}, target)
    assert (config.poisons, config.label, config.assumed()) == (12, 2, 12)
    assert oracle(config) == ("number of poisons", "target label")
    assert oracle(replace(config, factor=0.5, labels="all")) == ("number of poisons, times 0.5",)
    # A control that changes nothing tells the usual 2 %; what the user gives stands.
    assert told(Told(label=1), {"target_class": 2}, target).poisons == round(0.02 * len(target.train))
    assert told(Told(poisons=3), {"budget": 12, "target_class": 2}, target).poisons == 3
    with pytest.raises(ConfigError, match="one of 0 to 2"):
        told(Told(label=7), {"budget": 12}, target)
    with pytest.raises(ConfigError, match="at most the 240"):
        told(Told(factor=50.0, label=0), {"budget": 12}, target)
    with pytest.raises(ConfigError, match="give label=N"):
        Told(poisons=1).chosen(3)


# ---------------------------------------------------------------- whole defences


def whole(epochs=4):
    data = stripes_dataset()
    return ImageTrainable(data.train, data.facts, replace(small_config(), epochs=epochs), Device("cpu"))


def mislabelled(target, count=12):
    """The target's data with `count` rows of class 2 labelled 0."""
    labels = target.train.labels.copy()
    rows = np.flatnonzero(labels == 2)[:count]
    labels[rows] = 0
    return TrainingSet(target.train.images, labels), np.isin(np.arange(len(labels)), rows)


FILTERS = {
    "knn-agreement": (knn_agreement, {"neighbours": 10}),
    "small-loss": (small_loss, {}),
    "confident-learning": (confident_learning, {}),
}


@pytest.mark.parametrize("name", FILTERS)
def test_filters_of_wrong_labels_find_more_of_them_than_chance(name, ctx):
    if name == "confident-learning":
        pytest.importorskip("cleanlab")
    module, values = FILTERS[name]
    target = whole()
    data, wrong = mislabelled(target)
    config = module.Config(**values, **({"poisons": 12} if name != "confident-learning" else {}))
    defended = module.SPEC.run(target, config, ctx)
    (model,) = defended.fit(data, [0], ctx)
    found = model.verdicts
    # Random removal of as many rows finds their share; three binomial deviations above it is no accident.
    chance = found.removed.mean()
    assert found.removed[wrong].mean() > chance + 3 * np.sqrt(chance * (1 - chance) / wrong.sum())
    assert found.trained > model.model.trained > 0
    assert np.array_equal(model.logits(data.images[:3]), model.model.logits(data.images[:3]))


def test_random_removal_takes_as_many_of_the_told_label_and_no_other(ctx):
    target = whole(1)
    data, _ = mislabelled(target)
    defended = random_removal.SPEC.run(target, random_removal.Config(poisons=10, label=0), ctx)
    first, second = defended.fit(data, [0, 1], ctx)
    for model in (first, second):
        assert model.verdicts.removed.sum() == 15 and (data.targets[model.verdicts.removed] == 0).all()
    assert not np.array_equal(first.verdicts.removed, second.verdicts.removed)


def test_a_filter_that_leaves_no_batch_says_so(ctx):
    target = whole(1)
    data, _ = mislabelled(target)
    everything = random_removal.Config(poisons=240, labels="all")
    with pytest.raises(RedteamError, match="of 240 training rows 0 are left"):
        random_removal.SPEC.run(target, everything, ctx).fit(data, [0], ctx)


def test_composed_filters_add_up(ctx):
    target = whole(1)
    data, _ = mislabelled(target)
    inner = random_removal.SPEC.run(target, random_removal.Config(poisons=10, label=0), ctx)
    outer = Filtering(inner, "outer", {}, random_removal.SPEC.run(
        target, random_removal.Config(poisons=10, label=1), ctx).inspect)  # fmt: skip
    (model,) = outer.fit(data, [0], ctx)
    gone = data.targets[model.verdicts.removed]
    assert sorted(np.bincount(gone, minlength=3).tolist()) == [0, 15, 15]
    assert outer.fingerprint() != inner.fingerprint() != target.fingerprint()


def test_short_trainings_need_the_classifier_itself(ctx):
    target = whole(1)
    data, _ = mislabelled(target)
    inner = random_removal.SPEC.run(target, random_removal.Config(poisons=10, label=0), ctx)
    with pytest.raises(ThreatMismatchError, match="put this filter innermost"):
        small_loss.SPEC.run(inner, small_loss.Config(poisons=3), ctx).fit(data, [0], ctx)


@pytest.mark.parametrize(
    "name", ["activation-clustering", "knn-agreement", "small-loss", "confident-learning"]
)
def test_cards_say_what_is_told(name):
    spec = registry.get("defense", name)
    told_anything = spec.oracle(spec.presets["default"].config) if callable(spec.oracle) else spec.oracle
    assert bool(told_anything) == (name in ("knn-agreement", "small-loss"))
