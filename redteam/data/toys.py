"""A data set that is learnt in seconds, for tests and for the tiny targets of the contract test."""

from __future__ import annotations

import numpy as np

from redteam.data.nouns import DatasetFacts, ImageDataset, ImageSet


def stripes_dataset(n: int = 240, size: int = 8, classes: int = 3, seed: int = 0) -> ImageDataset:
    """Noise images whose class shows in the brightness of a third of the rows: easy to learn."""
    rng = np.random.default_rng(seed)

    def split(count: int) -> ImageSet:
        labels = np.arange(count, dtype=np.int64) % classes
        images = rng.integers(60, 120, (count, size, size, 1)).astype(np.uint8)
        for row, label in enumerate(labels):
            images[row, label * size // classes : (label + 1) * size // classes] += 90
        return ImageSet(images, labels, tuple(f"class {c}" for c in range(classes)))

    facts = DatasetFacts(mean=(0.4,), std=(0.2,), pad=0, flip=False, source_class=2, target_class=0)
    return ImageDataset("stripes", split(n), split(n // 2), facts, "made in the tests", "none needed")
