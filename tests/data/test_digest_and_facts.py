"""The identity of a data set, and its computed facts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redteam.core.errors import DataError
from redteam.data.facts import channel_stats, class_pair, computed_facts, customary_facts
from redteam.data.nouns import ImageSet

from .make import pixels


def _set(images: np.ndarray, labels: list[int], classes: tuple[str, ...] = ("a", "b")) -> ImageSet:
    return ImageSet(images, np.array(labels, np.int64), classes)


def test_digest_is_stable_and_ignores_memory_layout() -> None:
    images = pixels(4, 3, 3, 3)
    fortran = np.asfortranarray(images)
    assert _set(images, [0, 1, 0, 1]).digest == _set(fortran, [0, 1, 0, 1]).digest


def test_digest_notices_every_kind_of_change() -> None:
    images, labels = pixels(4, 3, 3, 1), [0, 1, 0, 0]
    flipped = images.copy()
    flipped[2, 1, 1, 0] ^= 1
    swapped = images[[1, 0, 2, 3]]
    digests = [
        _set(images, labels).digest,
        _set(flipped, labels).digest,
        _set(swapped, [1, 0, 0, 0]).digest,
        _set(images, [0, 1, 0, 1]).digest,
        _set(images, labels, ("a", "c")).digest,
        _set(images.reshape(4, 1, 9, 1), labels).digest,
    ]
    assert len(set(digests)) == len(digests)


def test_channel_stats_closed_form() -> None:
    images = np.zeros((2, 1, 2, 3), np.uint8)
    images[0, ..., 1], images[..., 2] = 255, 51
    mean, std = channel_stats(images)
    assert mean == (0.0, 0.5, 0.2)
    # constant channels get one grey level, to be divided by
    assert std == (round(1 / 255, 6), 0.5, round(1 / 255, 6))


@given(st.integers(1, 9000), st.integers(0, 2**32 - 1))
def test_channel_stats_agree_with_numpy_in_float64(n: int, seed: int) -> None:
    images = pixels(n, 1, 2, 2, seed=seed)
    mean, std = channel_stats(images)
    scaled = images.astype(np.float64) / 255
    assert np.allclose(mean, scaled.mean(axis=(0, 1, 2)), atol=6e-7)
    assert np.allclose(std, np.maximum(scaled.std(axis=(0, 1, 2)), 1 / 255), atol=6e-7)


def test_class_pair_never_coincides() -> None:
    assert class_pair(10) == (9, 4)
    assert class_pair(2) == (1, 0)
    assert class_pair(5) == (4, 3)
    assert all(len(set(class_pair(k))) == 2 for k in range(2, 300))
    with pytest.raises(DataError, match="at least 2 classes, got 1"):
        class_pair(1)


def test_facts_of_known_and_unknown_sets() -> None:
    cifar = customary_facts("cifar10", 10)
    assert (cifar.pad, cifar.flip, cifar.source_class, cifar.target_class) == (4, True, 9, 4)
    assert cifar.mean == (0.4914, 0.4822, 0.4465) and cifar.std == (0.2023, 0.1994, 0.2010)
    assert cifar.recipe["epochs"] == 10 and cifar.stripe_strength == 6.0
    assert [customary_facts(name, 10).flip for name in ("svhn", "mnist", "usps", "digits")] == [False] * 4
    assert customary_facts("fashion-mnist", 10).flip
    assert computed_facts(pixels(5, 64, 64, 3), 3).pad == 8
