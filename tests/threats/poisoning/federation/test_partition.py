"""Who holds which rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redteam.core.errors import ConfigError
from redteam.core.seeding import SeedPath
from redteam.threats.poisoning.federation.partition import deal, mixes, partition
from tests.threats.poisoning.federation.helpers import federation


@given(
    n=st.integers(6, 90), classes=st.integers(2, 5), clients=st.integers(1, 20), images=st.integers(1, 15),
    split=st.sampled_from(["homogeneous", "dirichlet"]), seed=st.integers(0, 99),
)  # fmt: skip
def test_every_row_of_a_class_is_held_equally_often_to_within_one(n, classes, clients, images, split, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    rows = partition(labels, classes, clients=clients, images=images, split=split, concentration=0.5, rng=rng)
    assert rows.shape == (clients, images) and rows.dtype == np.int64
    held = np.bincount(rows.ravel(), minlength=n)
    for label in np.unique(labels):
        assert np.ptp(held[labels == label]) <= 1


def test_clients_share_no_row_while_there_are_enough():
    labels = np.arange(300) % 3
    rows = partition(
        labels, 3, clients=25, images=12, split="homogeneous", concentration=1, rng=SeedPath(0).numpy()
    )
    assert len(np.unique(rows)) == 300
    assert (np.sort(labels[rows], 1) == np.repeat([0, 1, 2], 4)).all()


def test_what_does_not_divide_goes_to_classes_in_turn():
    counts = mixes("homogeneous", 7, 11, np.ones(4, bool), 1.0, SeedPath(0).numpy())
    assert (counts.sum(1) == 11).all() and counts.min() == 2 and counts.max() == 3
    assert np.ptp(counts.sum(0)) <= 1


def test_a_class_without_rows_is_given_to_nobody():
    labels = np.array([0, 0, 2, 2, 2])
    for split in ("homogeneous", "dirichlet"):
        rows = partition(
            labels, 4, clients=6, images=8, split=split, concentration=0.5, rng=SeedPath(1).numpy()
        )
        assert set(labels[rows].ravel()) <= {0, 2}
    with pytest.raises(ConfigError, match="class 1, and the training set has none"):
        deal(np.array([[0, 1, 0]]), labels, SeedPath(0).numpy())


def test_lower_concentration_is_more_uneven():
    def largest(concentration: float) -> float:
        counts = mixes("dirichlet", 500, 60, np.ones(10, bool), concentration, SeedPath(3).numpy())
        assert (counts.sum(1) == 60).all()
        return float(counts.max(1).mean())

    # The expected largest share of 10 falls from 1 to 1/10 as the concentration grows.
    assert largest(0.05) > 45 > largest(0.5) > 15 > largest(100.0) > 6


def test_a_config_that_cannot_be():
    with pytest.raises(ConfigError, match="fewer clients than sampled"):
        federation(clients=5, per_round=6)
    with pytest.raises(ConfigError, match="expected split=dirichlet"):
        federation(drift="labels")


def test_rows_are_part_of_the_task_and_cannot_be_written():
    a, b = federation(), federation(rounds=9)
    assert np.array_equal(a.rows, b.rows)
    with pytest.raises(ValueError, match="read-only"):
        a.rows[0, 0] = 1
    assert not np.array_equal(a.rows, federation(split="dirichlet").rows)
