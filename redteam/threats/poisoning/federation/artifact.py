"""What an attack on a federation hands over: malicious clients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from redteam.core.arrays import check_sizes, save_arrays
from redteam.core.errors import ArtifactError
from redteam.core.hashing import digest_arrays, digest_json


@dataclass(frozen=True)
class Clients:
    """Malicious clients of a federation: who they are, what their data say, and how they act.

    ids: (m,) int64, ascending. labels: (m, n) int64, what each gives for the n rows it holds. stamped: (m, n)
    bool, which of those wear the trigger. trigger, source_class, target_class: as in `Poison`. budget: the
    most clients the attack may hold. presence: `fixed` (the same share of every round) or `drawn` (clients are
    sampled blindly). conduct: numbers and words of `conduct.Conduct`.
    """

    kind: ClassVar[str] = "clients"

    ids: np.ndarray
    labels: np.ndarray
    stamped: np.ndarray
    trigger: Mapping[str, Any]
    source_class: int
    target_class: int
    budget: int
    presence: str = "fixed"
    conduct: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_sizes(self, ("ids", "labels", "stamped"))
        if self.presence not in ("fixed", "drawn"):
            raise ArtifactError(f"presence: expected fixed or drawn, got {self.presence!r}")

    @cached_property
    def digest(self) -> str:
        """sha256 of everything in it."""
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _CLIENT_ARRAYS}
        return digest_json([digest_arrays(arrays), self._meta()])

    def _meta(self) -> dict[str, Any]:
        return {
            "kind": self.kind, "trigger": dict(self.trigger), "source_class": self.source_class,
            "target_class": self.target_class, "budget": self.budget, "presence": self.presence,
            "conduct": dict(self.conduct),
        }  # fmt: skip

    def save(self, path: Path) -> str:
        """Write to `path` (`.npz`). Returns the file's sha256."""
        return save_arrays(path, {name: getattr(self, name) for name in _CLIENT_ARRAYS}, self._meta())

    @classmethod
    def of(cls, meta: Mapping[str, Any], arrays: Mapping[str, Any]) -> Clients:
        """From what `save` wrote."""
        return cls(**meta, **arrays)


_CLIENT_ARRAYS = ("ids", "labels", "stamped")
