"""What is customary for each data set, and how it is computed for one that nobody has met before."""

from __future__ import annotations

from math import sqrt

import numpy as np

from redteam.core.errors import DataError
from redteam.data.nouns import DatasetFacts

_CHUNK = 4096

# name: (mean, std, pad, flip). The colour sets and MNIST carry the values that papers use; Fashion-MNIST,
# USPS and digits were computed from all their training pixels by `channel_stats`.
_CUSTOMARY: dict[str, tuple[tuple[float, ...], tuple[float, ...], int, bool]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), 4, True),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), 4, True),
    "cifar20": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), 4, True),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), 4, False),
    "tiny-imagenet": ((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821), 8, True),
    "mnist": ((0.1307,), (0.3081,), 2, False),
    "fashion-mnist": ((0.286041,), (0.353024,), 2, True),
    "usps": ((0.254480,), (0.384621,), 2, False),
    "digits": ((0.305359,), (0.376028,), 1, False),
}


# Victims that a laptop trains in minutes. The papers' recipes are presets of their attacks.
LAPTOP_RECIPE = {"model": "preact-resnet8-s2", "epochs": 10, "schedule": "onecycle"}
_SMALL_RECIPE = {"model": "preact-resnet8", "epochs": 20, "schedule": "onecycle", "batch_size": 64}


def channel_stats(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation per channel, of pixels scaled to [0, 1].

    Sums are exact integers, so neither chunking nor order changes the result. A constant channel gets
    the deviation of one grey level, since it is going to be divided by.

    Args:
        images: (N, H, W, C) uint8, N > 0.

    Returns:
        C means and C deviations, rounded to 6 digits.
    """
    total = np.zeros(images.shape[3], np.int64)
    squares = np.zeros(images.shape[3], np.int64)
    for start in range(0, len(images), _CHUNK):
        chunk = images[start : start + _CHUNK].astype(np.uint16)
        total += chunk.sum(axis=(0, 1, 2), dtype=np.int64)
        squares += (chunk * chunk).sum(axis=(0, 1, 2), dtype=np.int64)
    n = int(np.prod(images.shape[:3]))
    means, stds = [], []
    for s, q in zip(total.tolist(), squares.tolist(), strict=True):
        means.append(round(s / n / 255, 6))
        stds.append(round(max(sqrt(n * q - s * s) / n, 1.0) / 255, 6))
    return tuple(means), tuple(stds)


def class_pair(classes: int) -> tuple[int, int]:
    """The default (source, target) classes: the last one, and class 4 where there is one.

    On CIFAR-10 that is truck to deer.

    Raises:
        DataError: fewer than two classes.
    """
    if classes < 2:
        raise DataError(f"expected at least 2 classes, got {classes}")
    return classes - 1, min(4, classes - 2)


def customary_facts(name: str, classes: int) -> DatasetFacts:
    """Facts of a data set that the literature has settled."""
    mean, std, pad, flip = _CUSTOMARY[name]
    source, target = class_pair(classes)
    recipe = _SMALL_RECIPE if name == "digits" else LAPTOP_RECIPE
    return DatasetFacts(
        mean=mean, std=std, pad=pad, flip=flip, source_class=source, target_class=target, recipe=recipe
    )


def computed_facts(images: np.ndarray, classes: int) -> DatasetFacts:
    """Facts from the training images: (N, H, W, C) uint8. Padding is an eighth of the height."""
    source, target = class_pair(classes)
    mean, std = channel_stats(images)
    pad = round(images.shape[1] / 8)
    return DatasetFacts(
        mean=mean, std=std, pad=pad, flip=True, source_class=source, target_class=target, recipe=LAPTOP_RECIPE
    )
