"""Poison: training data, or clients of a federation, that were changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from redteam.core.arrays import save_arrays


@dataclass(frozen=True)
class Poison:
    """Poisoned training data and the trigger that is to open the backdoor.

    targets: (n,) int64 labels or (n, K) float32 soft labels, for all n training rows.
    indices, images: rows whose pixels were changed, (m,) int64 and (m, H, W, C) uint8.
    trigger: `{"name": ..., **numbers}` for `triggers.apply`.
    source_class: -1 means every class but the target.
    budget: the largest number of rows the attack was allowed to change.
    """

    kind: ClassVar[str] = "poison"

    targets: np.ndarray
    trigger: Mapping[str, Any]
    source_class: int
    target_class: int
    budget: int
    indices: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    images: np.ndarray | None = None

    def save(self, path: Path) -> str:
        """Write to `path` (`.npz`). Returns the file's sha256."""
        arrays = {"targets": self.targets, "indices": self.indices}
        if self.images is not None:
            arrays["images"] = self.images
        meta = {
            "kind": self.kind,
            "trigger": dict(self.trigger),
            "source_class": self.source_class,
            "target_class": self.target_class,
            "budget": self.budget,
        }
        return save_arrays(path, arrays, meta)

    @classmethod
    def of(cls, meta: Mapping[str, Any], arrays: Mapping[str, Any]) -> Poison:
        """From what `save` wrote."""
        return cls(**meta, **arrays)
