"""Texts with suffixes that are to slip them past a moderation classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from redteam.core.arrays import check_sizes, save_arrays


@dataclass(frozen=True)
class Suffixes:
    """n texts with the suffixes that are to slip them past a moderation classifier.

    texts: as they were. sent: text and suffix. control: text and a random suffix of the same length.
    split: `train` or `validation` (texts that a universal suffix was not searched on). finish: how the
    search of each ended. queries: (n,) int64. score_before, score_after: (n,) float64, sums of category
    scores as the search saw them.
    """

    kind: ClassVar[str] = "suffixes"

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    sent: tuple[str, ...]
    control: tuple[str, ...]
    split: tuple[str, ...]
    finish: tuple[str, ...]
    queries: np.ndarray
    score_before: np.ndarray
    score_after: np.ndarray
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _SUFFIX_TEXTS:
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_sizes(self, (*_SUFFIX_TEXTS, *_SUFFIX_ARRAYS))

    def save(self, path: Path) -> str:
        """Write to `path` (`.npz`). Returns the file's sha256."""
        meta = {name: list(getattr(self, name)) for name in _SUFFIX_TEXTS}
        arrays = {name: getattr(self, name) for name in _SUFFIX_ARRAYS}
        return save_arrays(path, arrays, {"kind": self.kind, "notes": dict(self.notes), **meta})

    @classmethod
    def of(cls, meta: Mapping[str, Any], arrays: Mapping[str, Any]) -> Suffixes:
        """From what `save` wrote."""
        return cls(**meta, **arrays)


_SUFFIX_TEXTS = ("ids", "texts", "sent", "control", "split", "finish")


_SUFFIX_ARRAYS = ("queries", "score_before", "score_after")
