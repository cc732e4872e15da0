"""Data sets in memory: labelled images and lists of strings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar, cast

from redteam.core.config import build
from redteam.core.errors import ConfigError, DataError
from redteam.core.hashing import digest_arrays, digest_json

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")


@dataclass(frozen=True)
class ImageSet:
    """Labelled images in memory.

    images: (N, H, W, C) uint8. labels: (N,) int64 in [0, len(classes)).
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != "uint8" or self.images.ndim != 4:
            raise DataError(
                f"expected images (N, H, W, C) uint8, got {self.images.shape} {self.images.dtype}"
            )
        if self.labels.dtype != "int64" or self.labels.shape != (len(self.images),):
            raise DataError(
                f"expected labels ({len(self.images)},) int64, got {self.labels.shape} {self.labels.dtype}"
            )
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise DataError(
                f"expected labels in [0, {len(self.classes)}), got {self.labels.min()} to {self.labels.max()}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def digest(self) -> str:
        """sha256 of the pixels, the labels, their order and the class names."""
        content = digest_arrays({"images": self.images, "labels": self.labels})
        return digest_json([content, list(self.classes)])


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFacts:
    """What is customary for one data set: it lives here, not in a config file per data set.

    mean, std: per channel, of pixels scaled to [0, 1]. pad: pixels of random-crop padding.
    recipe: fields of the image-classifier target that differ from its own defaults.
    stripe_strength: amplitude, in grey levels, of the customary sinusoidal trigger.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int
    flip: bool
    source_class: int
    target_class: int
    stripe_strength: float = 6.0
    recipe: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageDataset:
    """A named pair of training and test images, with its facts, licence and provenance."""

    name: str
    train: ImageSet
    test: ImageSet
    facts: DatasetFacts
    source: str
    licence: str

    def __post_init__(self) -> None:
        if self.train.images.shape[1:] != self.test.images.shape[1:]:
            raise DataError(
                f"'{self.name}': training images are {self.train.images.shape[1:]} "
                f"and test images {self.test.images.shape[1:]}; they must have one shape"
            )
        if self.train.classes != self.test.classes:
            raise DataError(f"'{self.name}': training and test sets name different classes")

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in label order."""
        return self.train.classes

    @cached_property
    def digest(self) -> str:
        """sha256 over both splits; it goes into every record."""
        return digest_json([self.train.digest, self.test.digest])


@dataclass(frozen=True)
class TextDataset:
    """A named list of strings in memory: the targets an attack is to elicit, or texts to slip past a filter.

    benign: harmless prompts that a defence must let through; `ids` name the strings in every table.
    """

    name: str
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    source: str
    licence: str
    benign: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.texts or len(self.ids) != len(self.texts):
            raise DataError(
                f"'{self.name}': expected as many ids as strings, and at least one, "
                f"got {len(self.ids)} and {len(self.texts)}"
            )
        if len(set(self.ids)) != len(self.ids):
            raise DataError(f"'{self.name}': expected each id once")
        for name, text in zip(self.ids, self.texts, strict=True):
            if not text.strip():
                raise DataError(f"'{self.name}': the string '{name}' is empty")

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def digest(self) -> str:
        """sha256 of ids, strings and benign prompts, in order."""
        return digest_json([list(self.ids), list(self.texts), list(self.benign)])

    def configured(self, cls: type[T], layers: Sequence[Mapping[str, Any]]) -> T:
        """A target's config, which has `strings`, with settings laid over it, the last layer on top.

        All but the last are presets: of fewer strings than a preset has, all are taken.

        Raises:
            ConfigError: an unknown setting, one out of range, or more strings than there are.
        """
        config: Any = cls()
        for place, layer in enumerate(layers, 1):
            config = build(cls, layer, base=config, where="target")
            if place < len(layers) and (config.strings or 0) > len(self):
                config = replace(config, strings=len(self))
        if (config.strings or 0) > len(self):
            raise ConfigError(
                f"strings: expected at most {len(self)}, as many as '{self.name}' has, got {config.strings}"
            )
        return cast(T, config)

    def first(self, n: int | None) -> TextDataset:
        """The first `n` strings."""
        return self if n is None else replace(self, ids=self.ids[:n], texts=self.texts[:n])
