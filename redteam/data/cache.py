"""Decoded arrays kept on disk, so that the second load of a Parquet set takes a moment.

The cache is a convenience: one that is damaged, foreign or cannot be written is passed over in silence.
"""

from __future__ import annotations

import json
import logging
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from redteam.core.errors import StorageError
from redteam.core.files import atomic_path
from redteam.core.hashing import digest_arrays, digest_json
from redteam.data.access import cache_dir

_LOG = logging.getLogger(__name__)
_META = "meta"
# What numpy, zipfile and json raise on damaged bytes; a flipped zip flag reads as "encrypted": RuntimeError.
_UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    EOFError,
    RuntimeError,
    MemoryError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True, slots=True)
class Bundle:
    """Named arrays with a little JSON beside them."""

    arrays: Mapping[str, np.ndarray]
    info: Mapping[str, Any]

    def digest(self) -> str:
        """sha256 of all arrays and of the JSON."""
        return digest_json([digest_arrays(self.arrays), dict(self.info)])


def cached(key: str, build: Callable[[], Bundle]) -> Bundle:
    """The bundle stored under `key`, or else a fresh one, which is then stored.

    A stored bundle is used only if it still has the digest recorded when it was written.
    """
    path = cache_dir() / "decoded" / f"{key}.npz"
    stored = _read(path)
    if stored is not None:
        return stored
    bundle = build()
    try:
        _write(path, bundle)
    except StorageError as error:
        _LOG.info("decoded images are not cached: %s", error)
    return bundle


def _read(path: Path) -> Bundle | None:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files if name != _META}
            meta = json.loads(archive[_META].tobytes())
        bundle = Bundle(arrays, meta["info"])
        intact = bundle.digest() == meta["digest"]
    except FileNotFoundError:
        return None
    except _UNREADABLE as error:
        _LOG.info("ignoring the cached %s: %s", path, error)
        return None
    if not intact:
        _LOG.info("ignoring the cached %s: its content does not match its digest", path)
    return bundle if intact else None


def _write(path: Path, bundle: Bundle) -> None:
    meta = json.dumps({"info": dict(bundle.info), "digest": bundle.digest()}).encode()
    with atomic_path(path) as partial, partial.open("wb") as f:
        np.savez(f, allow_pickle=False, **{_META: np.frombuffer(meta, np.uint8)}, **bundle.arrays)
