"""Domains: a labelled source, an unlabelled target, and how they are divided for one seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from redteam.core.errors import DataError
from redteam.core.hashing import digest_json
from redteam.core.seeding import SeedPath
from redteam.data.nouns import ImageSet

# Shares of the protocol of [wang2024dart] (specs: source 80/20; target 60 unlabelled, 20 validation, 20 test).
SOURCE_TRAIN, TARGET_TRAIN, TARGET_VAL = 0.8, 0.6, 0.2


@dataclass(frozen=True)
class DomainDataset:
    """A source and a target domain with the same classes, or one data set with its own test images.

    name: `mnist-to-usps`, or the data set's own. source: all labelled source images. target: all images of the
    target domain; the labels are for judges only. test: set instead of `target` where there is one domain.
    """

    name: str
    source: ImageSet
    target: ImageSet | None
    origin: str
    licence: str
    test: ImageSet | None = None

    def __post_init__(self) -> None:
        if (self.target is None) == (self.test is None):
            raise DataError(f"'{self.name}': expected a target domain or a test set, and not both")
        other = self.target if self.target is not None else self.test
        assert other is not None
        if other.classes != self.source.classes:
            raise DataError(f"'{self.name}': the domains name different classes")
        if other.images.shape[1:] != self.source.images.shape[1:]:
            raise DataError(
                f"'{self.name}': source images are {self.source.images.shape[1:]} and target images "
                f"{other.images.shape[1:]}; they must have one shape"
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in label order."""
        return self.source.classes

    @property
    def adapts(self) -> bool:
        """Whether there is a target domain to adapt to."""
        return self.target is not None

    @cached_property
    def digest(self) -> str:
        """sha256 over both domains."""
        other = self.target if self.target is not None else self.test
        assert other is not None
        return digest_json([self.source.digest, other.digest, self.adapts])


@dataclass(frozen=True)
class DomainSplit:
    """One seed's division. Training sees source, source_val, the images of target and of target_val.

    target_labels, and the labels of target_val, are for the scorer and for oracles. test: what attacks are run on.
    Without a target domain: target and target_val are empty.
    """

    source: ImageSet
    source_val: ImageSet
    target: np.ndarray
    target_labels: np.ndarray
    target_val: ImageSet
    test: ImageSet


def _take(images: ImageSet, rows: np.ndarray) -> ImageSet:
    return ImageSet(images.images[rows], images.labels[rows], images.classes)


def split(dataset: DomainDataset, seeds: SeedPath, rows: int = 0) -> DomainSplit:
    """Divide both domains at random: source 80/20; target 60 unlabelled, 20 validation, 20 test.

    rows: use so many images of each domain, drawn first; 0: all. With one domain the given test set is the test.

    Raises:
        DataError: a part would be empty.
    """

    def shuffled(images: ImageSet, name: str) -> np.ndarray:
        order = seeds.child("split", name).numpy().permutation(len(images))
        return order[:rows] if rows else order

    source, target = dataset.source, dataset.target
    s = shuffled(source, "source")
    cut = round(SOURCE_TRAIN * len(s))
    nothing = ImageSet(source.images[:0], source.labels[:0], source.classes)
    parts = {"source": _take(source, s[:cut]), "source_val": _take(source, s[cut:])}
    if target is None:
        assert dataset.test is not None
        found = DomainSplit(
            **parts, target=nothing.images, target_labels=nothing.labels, target_val=nothing,
            test=_take(dataset.test, shuffled(dataset.test, "test")),
        )  # fmt: skip
    else:
        t = shuffled(target, "target")
        a, b = round(TARGET_TRAIN * len(t)), round((TARGET_TRAIN + TARGET_VAL) * len(t))
        train = _take(target, t[:a])
        found = DomainSplit(
            **parts, target=train.images, target_labels=train.labels, target_val=_take(target, t[a:b]),
            test=_take(target, t[b:]),
        )  # fmt: skip
    if not all(map(len, (found.source, found.source_val, found.test))) or (target and not len(found.target)):
        raise DataError(
            f"'{dataset.name}': too few images to divide: {len(s)} of the source, {len(found.test)} left to test"
        )
    return found
