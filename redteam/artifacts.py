"""What an attack hands to the scorer, saved as `.npz` without pickle and read back with its digest.

A trigger is numbers plus a pure function that knows them (`redteam.triggers`), never a closure.
"""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from redteam.errors import ArtifactError
from redteam.files import atomic_path
from redteam.hashing import canonical_json, digest_file

_META = "meta.json"
# Everything that zipfile, zlib and numpy raise on damaged bytes; RuntimeError: unknown compression.
_UNREADABLE = (
    zipfile.BadZipFile, zlib.error, struct.error, ValueError, KeyError, EOFError, OSError, RuntimeError, MemoryError,
)  # fmt: skip


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> str:
    """Write arrays and JSON metadata into one compressed `.npz`. Returns the file's sha256.

    The bytes depend on the content alone: same arrays, same file.
    """
    packed = {_META: np.frombuffer(canonical_json(dict(meta)).encode(), dtype=np.uint8)}
    with atomic_path(path) as partial:
        with partial.open("wb") as f:
            np.savez_compressed(f, allow_pickle=False, **packed, **{k: arrays[k] for k in sorted(arrays)})
        digest = digest_file(partial)
    return digest


def load_arrays(path: Path, sha256: str | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what `save_arrays` wrote.

    Raises:
        ArtifactError: the file is missing, truncated, holds pickles, or its digest is not `sha256`.
    """
    if not path.is_file():
        raise ArtifactError(f"no artifact at {path}; run the attack again to make it")
    if sha256 is not None and (came := digest_file(path)) != sha256:
        raise ArtifactError(
            f"{path} was changed or truncated: expected sha256 {sha256[:16]}..., got {came[:16]}...; "
            "restore the file, or delete its run folder and run the attack again"
        )
    try:
        with np.load(path, allow_pickle=False) as npz:
            arrays = {name: npz[name] for name in npz.files}
        meta = json.loads(arrays.pop(_META).tobytes())
    except _UNREADABLE as error:
        raise ArtifactError(f"{path} is not a readable artifact ({error}); run the attack again") from error
    return arrays, meta


@dataclass(frozen=True)
class Poison:
    """Poisoned training data and the trigger that is to open the backdoor.

    targets: (n,) int64 labels or (n, K) float32 soft labels, for all n training rows.
    indices, images: rows whose pixels were changed, (m,) int64 and (m, H, W, C) uint8.
    trigger: `{"name": ..., **numbers}` for `redteam.triggers.apply`.
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


Artifact = Poison


def load(path: Path, sha256: str | None = None) -> Artifact:
    """Read an artifact of any kind.

    Raises:
        ArtifactError: see `load_arrays`; also for an unknown kind or missing parts.
    """
    arrays, meta = load_arrays(path, sha256)
    kind = meta.pop("kind", None)
    if kind != Poison.kind:
        raise ArtifactError(f"{path} holds an artifact of kind {kind!r}; this version reads: {Poison.kind}")
    try:
        parts: dict[str, Any] = {**meta, **arrays}
        return Poison(**parts)
    except TypeError as error:
        raise ArtifactError(f"{path} lacks or adds parts: {error}") from error
