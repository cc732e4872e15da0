"""Spectral signatures: centred scores, closed forms, and the defence as a whole."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ortho_group

from defenses.poisoning import spectral_signatures as defence
from redteam.data.toys import stripes_dataset
from redteam.learn.nouns import TrainingSet
from tests.defenses.poisoning.spikes import planted, recall


def test_closed_form():
    """On a cross with a long and a short axis the score is the squared place on the long one."""
    x = np.array([[3.0, 0], [-3, 0], [0, 1], [0, -1]]) + 7
    scores, share = defence.signature(x)
    assert np.allclose(scores, [9, 9, 0, 0], atol=1e-12) and np.isclose(share, 18 / 20)


def test_as_the_singular_vector_says():
    x = np.random.default_rng(0).standard_normal((60, 9)) * np.arange(1, 10)
    centred = x - x.mean(0)
    v = np.linalg.svd(centred)[2][0]
    scores, share = defence.signature(x)
    assert np.allclose(scores, (centred @ v) ** 2)
    assert np.isclose(share, ((centred @ v) ** 2).sum() / (centred**2).sum())


@given(st.integers(0, 10_000), st.floats(-1e3, 1e3))
@settings(max_examples=25)
def test_shifts_rotations_and_order_change_no_score(seed, shift):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((80, 5)) * np.array([3, 1, 1, 0.5, 0])
    first, _ = defence.signature(x)
    order = rng.permutation(len(x))
    assert np.allclose(defence.signature(x + shift)[0], first, rtol=1e-6, atol=1e-6)
    assert np.allclose(defence.signature(x @ ortho_group.rvs(5, random_state=seed))[0], first)
    assert np.allclose(defence.signature(x[order])[0], first[order])


def test_recall_near_the_optimum_where_the_spike_is_the_top_direction():
    rows = []
    for seed in range(5):
        data = planted(seed, 3.0)
        rows.append([recall(s, data.poisoned) for s in (data.optimum(), defence.signature(data.features)[0])])
    best, ours = np.mean(rows, 0)
    assert best > 0.8 and best - 0.2 < ours <= best
    # Hidden below the label's own variance it is not seen at all.
    data = planted(0, 3.0)
    stretched = data.features @ np.diag([9.0] + [1.0] * 15)
    assert recall(defence.signature(stretched)[0], data.poisoned) < 0.35


def test_constant_rows_and_one_row():
    for x in (np.ones((4, 3)), np.ones((1, 3))):
        scores, share = defence.signature(x)
        assert not scores.any() and share == 0


def test_whole_defence(target, ctx):
    data = stripes_dataset(n=360)
    images, labels = data.train.images.copy(), data.train.labels.copy()
    rows = np.flatnonzero(labels == 2)[:16]
    images[rows, :4, :4], labels[rows] = 255, 0
    given_data = TrainingSet(images, labels)
    config = defence.Config(poisons=16, label=0)
    (model,) = defence.SPEC.run(target, config, ctx).fit(given_data, [0], ctx)
    assert model.verdicts.removed.sum() == 24 and model.verdicts.removed[rows].mean() > 0.8
    config = defence.Config(poisons=16, labels="suspected", suspects=1)
    verdicts = defence.SPEC.run(target, config, ctx).inspect(target, given_data, 0, ctx)
    assert verdicts.removed.sum() == 24 and len(verdicts.notes["looked_at"]) == 1
