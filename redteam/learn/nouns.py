"""What training takes and gives: a training set in, a fitted classifier out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from redteam.core.hashing import digest_arrays

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class TrainingSet:
    """What a victim is fitted on. images: (N, H, W, C) uint8.

    targets: (N,) int64 class labels, or (N, K) float32 class probabilities (soft labels).
    """

    images: np.ndarray
    targets: np.ndarray

    @cached_property
    def digest(self) -> str:
        """sha256 of images and targets."""
        return digest_arrays({"images": self.images, "targets": self.targets})


@runtime_checkable
class Classifier(Protocol):
    """A fitted image classifier."""

    def logits(self, images: np.ndarray) -> np.ndarray:
        """images: (N, H, W, C) uint8. Returns (N, K) float32."""


Layer = Literal["penultimate", "spatial"]


@runtime_checkable
class Featured(Protocol):
    """A classifier that shows its representations, as filters need."""

    def features(self, images: np.ndarray, layer: Layer = "penultimate") -> np.ndarray:
        """images: (N, H, W, C) uint8. Returns (N, D) float32."""
