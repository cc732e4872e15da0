"""Distributions that change over the rounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redteam.learn.train import normalise
from redteam.threats.poisoning import triggers
from redteam.threats.poisoning.federation.drift import Drift, rotate
from redteam.threats.poisoning.federation.holdings import Holdings
from tests.threats.poisoning.federation.helpers import clients, federation


def images(n: int = 3, height: int = 8, width: int = 8, channels: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, height, width, channels)).astype(np.uint8)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_move_pixels_and_nothing_else(turns):
    x = images()
    assert np.array_equal(rotate(x, 90 * turns), np.rot90(x, turns, axes=(1, 2)))


@given(st.integers(-3, 3))
def test_whole_turns_change_nothing(turns):
    x = images()
    assert rotate(x, 360 * turns) is x


def test_half_a_turn_of_an_image_that_is_not_square():
    x = images(height=6, width=10)
    assert np.array_equal(rotate(x, 180), x[:, ::-1, ::-1])


def test_zeros_come_in_at_the_corners_and_a_disc_stays():
    white = np.full((1, 14, 14, 1), 200, np.uint8)
    turned = rotate(white, 45)[0, :, :, 0]
    assert turned[0, 0] == turned[-1, -1] == 0 and (turned[4:10, 4:10] == 200).all()


def test_many_images_are_turned_in_chunks_alike():
    x = np.tile(images(1, channels=1), (4100, 1, 1, 1))
    out = rotate(x, 30)
    assert (out == out[0]).all() and not np.array_equal(out[0], x[0])


def test_stages_begin_where_they_should():
    drift = Drift("rotation", 100, 30.0)
    assert [drift.stage(r) for r in (0, 99, 100, 299, 300)] == [0, 0, 1, 2, 3]
    assert Drift("static", 100, 30.0).stage(250) == 0
    assert [Drift("labels", 2, 0.0).dealing(s) for s in (0, 1)] == [0, 1] and drift.dealing(2) == 0


def holdings(target, malicious):
    return Holdings(target.train, target.facts, target.device.torch(), target.drift, target.dealt, malicious)


def test_the_trigger_is_stamped_after_the_turn():
    target = federation(drift="rotation", drift_every=1)
    bad = clients(target, [2, 5])
    share = holdings(target, bad).of(np.array([1, 2, 5]), np.array([False, True, True]), 1)
    rows = target.rows[[1, 2, 5]]
    turned = rotate(target.train.images, 30)
    expected = turned[rows]
    for k, place in ((1, 0), (2, 1)):
        own = rows[k][bad.stamped[place]]
        expected[k][bad.stamped[place]] = triggers.apply(bad.trigger, turned[own], own)
    import torch

    flat = normalise(torch.from_numpy(expected.reshape(-1, 8, 8, 1)), target.facts)
    assert torch.equal(share.images.flatten(0, 1), flat)
    assert np.array_equal(share.labels[1:].numpy(), bad.labels)
    assert np.array_equal(share.labels[0].numpy(), target.train.labels[rows[0]])


def test_a_client_that_does_not_act_holds_clean_data():
    target = federation()
    ids, calm = np.array([2, 5]), np.zeros(2, bool)
    a = holdings(target, clients(target, [2, 5])).of(ids, calm, 0)
    b = holdings(target, None).of(ids, calm, 0)
    assert (a.images == b.images).all() and (a.labels == b.labels).all()


def test_label_drift_deals_anew_to_honest_clients_alone():
    target = federation(drift="labels", drift_every=2, split="dirichlet")
    held = holdings(target, clients(target, [0]))
    calm = np.zeros(12, bool)
    first, later = (held.of(np.arange(12), calm, r) for r in (1, 2))
    changed = [(first.images[k] != later.images[k]).any().item() for k in range(12)]
    assert not changed[0] and all(changed[1:])
    assert np.array_equal(later.labels[1:].numpy(), target.train.labels[target.dealt(1)[1:]])


def test_the_target_turns_test_images_and_leaves_them_without_drift():
    x = images(channels=1)
    target = federation(drift="rotation", drift_every=2, drift_angle=90.0)
    assert np.array_equal(target.at(x, 1), x) and np.array_equal(target.at(x, 3), np.rot90(x, 1, axes=(1, 2)))
    assert federation().at(x, 3) is x
    still = replace(target, config=replace(target.config, drift="static"))
    assert still.at(x, 3) is x
