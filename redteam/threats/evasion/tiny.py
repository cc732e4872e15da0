"""Two small domains whose classes show in the brightness of bands: the target is inverted and noisier."""

from __future__ import annotations

import numpy as np

from redteam.data.nouns import ImageSet
from redteam.threats.evasion.domain import DomainDataset


def bands(n: int, seed: int, *, invert: bool = False, classes: int = 3, size: int = 8) -> ImageSet:
    """(n, size, size, 3) uint8: noise, with a band of rows lit for each class; dark on bright where inverted."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n, dtype=np.int64) % classes
    images = rng.integers(40, 90, (n, size, size, 3)).astype(np.int64)
    for row, label in enumerate(labels):
        images[row, label * size // classes : (label + 1) * size // classes] += 100
    if invert:
        images = 235 - images + rng.integers(-15, 16, images.shape)
    return ImageSet(images.clip(0, 255).astype(np.uint8), labels, tuple(f"class {c}" for c in range(classes)))


def pair(n: int = 200) -> DomainDataset:
    """A source and its inverted target."""
    return DomainDataset(
        "bands-to-inverted", bands(n, 0), bands(n, 1, invert=True), "made in the tests", "none"
    )


def single(n: int = 200) -> DomainDataset:
    """One domain with its own test images."""
    return DomainDataset("bands", bands(n, 0), None, "made in the tests", "none", test=bands(n // 2, 2))
