"""Arrays and JSON metadata in one `.npz`, without pickle, and read back with its digest."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from redteam.core.errors import ArtifactError
from redteam.core.files import atomic_path
from redteam.core.hashing import canonical_json, digest_file

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


def check_sizes(artifact: Any, names: tuple[str, ...]) -> None:
    sizes = {name: len(getattr(artifact, name)) for name in names}
    if len(set(sizes.values())) != 1:
        raise ArtifactError(f"expected one entry an example in every part, got {sizes}")
