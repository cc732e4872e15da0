"""What a filter of training data says of the rows it was given: the scorer reads it, attacks may."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from redteam.core.errors import ArtifactError
from redteam.learn.nouns import Classifier


@dataclass(frozen=True)
class Verdicts:
    """Of n training rows: which were left out, and how suspicious each looked.

    removed: (n,) bool. scores: (n,) float32, higher is more suspicious, NaN where a row was not scored; they
    are compared within one given label only. trained: images put through training steps to make this one
    classifier, in all its trainings. notes: what the filter has to say of itself, as plain JSON values.
    """

    removed: np.ndarray
    scores: np.ndarray
    trained: int
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.removed.dtype != bool or self.removed.shape != self.scores.shape or self.removed.ndim != 1:
            raise ArtifactError(
                f"expected removed (n,) bool and scores (n,), got {self.removed.shape} {self.removed.dtype} "
                f"and {self.scores.shape}"
            )


@dataclass(frozen=True)
class FilteredClassifier:
    """A classifier and what was filtered to make it: what a filtering defence's `fit` returns."""

    model: Classifier
    verdicts: Verdicts

    def logits(self, images: np.ndarray) -> np.ndarray:
        """images: (N, H, W, C) uint8. Returns (N, K) float32."""
        return self.model.logits(images)


@dataclass(frozen=True)
class Overridden:
    """A backbone whose answer `label` is never final: where it gives it, that label's override answers.

    Source: shadow learning's inference rule [wang2022shadow].
    """

    backbone: Classifier
    overrides: Mapping[int, Classifier]

    def logits(self, images: np.ndarray) -> np.ndarray:
        """images: (N, H, W, C) uint8. Returns (N, K) float32: the backbone's rows, or an override's."""
        out = np.array(self.backbone.logits(images))
        said = out.argmax(1)
        for label, model in self.overrides.items():
            rows = np.flatnonzero(said == label)
            if len(rows):
                out[rows] = model.logits(images[rows])
        return out
