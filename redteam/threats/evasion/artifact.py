"""Images moved a little so that a classifier misreads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from redteam.core.arrays import save_arrays
from redteam.core.errors import ArtifactError

# In `Perturbed.broken`: no attack fooled the model; the model was wrong by itself.
SURVIVED, WRONG = -1, -2


@dataclass(frozen=True)
class Perturbed:
    """Adversarial images of n examples, for V victims (replicas of one model) and at E radii.

    norm: `Linf` or `L2`. eps: (E,) float64, ascending, of pixels in [0, 1]. main: the radius that the headline is
    for, one of eps. attacks: in the order in which they ran, each on the survivors of those before it. rows: (n,)
    int64, which test images. broken: (V, E, n) int64, the attack (position in attacks) that fooled the model it was
    made on, or SURVIVED, or WRONG. where: (m, 3) int64, (victim, radius, example) of each image kept. images:
    (m, C, H, W) float32 in [0, 1]; an example that survived may be left out, and then counts as it was.
    forwards, backwards: (V, E, n) int64, images put through the model and gradients taken. notes: what the attack
    has to say of itself, as plain JSON values.
    """

    kind: ClassVar[str] = "perturbed"

    norm: str
    eps: np.ndarray
    main: float
    attacks: tuple[str, ...]
    rows: np.ndarray
    broken: np.ndarray
    where: np.ndarray
    images: np.ndarray
    forwards: np.ndarray
    backwards: np.ndarray
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "attacks", tuple(self.attacks))
        radii, n = len(self.eps), len(self.rows)
        shapes = {name: getattr(self, name).shape for name in ("broken", "forwards", "backwards")}
        if any(len(s) != 3 or s[1:] != (radii, n) for s in shapes.values()) or len(set(shapes.values())) != 1:
            raise ArtifactError(f"expected (victims, {radii}, {n}) for each of {shapes}")
        if self.where.shape != (len(self.images), 3) or self.images.dtype != np.float32:
            raise ArtifactError(
                f"expected float32 images and where ({len(self.images)}, 3), got {self.images.dtype} and "
                f"{self.where.shape}"
            )
        if self.main not in self.eps:
            raise ArtifactError(f"main: expected one of the radii {self.eps.tolist()}, got {self.main}")

    @property
    def victims(self) -> int:
        """How many replicas were attacked."""
        return int(self.broken.shape[0])

    def save(self, path: Path) -> str:
        """Write to `path` (`.npz`). Returns the file's sha256."""
        meta = {
            "kind": self.kind, "norm": self.norm, "main": self.main, "attacks": list(self.attacks),
            "notes": dict(self.notes),
        }  # fmt: skip
        return save_arrays(path, {name: getattr(self, name) for name in _ARRAYS}, meta)

    @classmethod
    def of(cls, meta: Mapping[str, Any], arrays: Mapping[str, Any]) -> Perturbed:
        """From what `save` wrote."""
        return cls(**meta, **arrays)


_ARRAYS = ("eps", "rows", "broken", "where", "images", "forwards", "backwards")
