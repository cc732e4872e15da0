"""IDX files, the format of MNIST and Fashion-MNIST, plain or gzipped."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from redteam.core.errors import DataError

_UINT8 = 0x08
STEMS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def find_idx(folder: Path, stem: str) -> Path | None:
    """The plain file of that stem, else the gzipped one, else None."""
    for candidate in (folder / stem, folder / f"{stem}.gz"):
        if candidate.is_file():
            return candidate
    return None


def has_idx(folder: Path) -> bool:
    """Whether all four files are in the folder."""
    return all(find_idx(folder, stem) for stems in STEMS.values() for stem in stems)


def read_idx(path: Path) -> np.ndarray:
    """Read one array of unsigned bytes.

    Raises:
        DataError: the file is truncated, not IDX, or holds another type.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] != _UINT8:
        raise DataError(
            f"{path} is not an IDX file of unsigned bytes: it starts with {raw[:4].hex() or 'nothing'}"
        )
    header = 4 + 4 * raw[3]
    if len(raw) < header:
        raise DataError(f"{path} is truncated within its header")
    shape = struct.unpack(f">{raw[3]}I", raw[4:header])
    expected = header + int(np.prod(shape, dtype=np.int64))
    if len(raw) != expected:
        raise DataError(f"{path}: expected {expected} bytes for shape {shape}, got {len(raw)}")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def read_idx_split(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read images (N, H, W, 1) uint8 and labels (N,) int64 of `train` or `test`.

    Raises:
        DataError: a file is missing or malformed, or the two do not fit each other.
    """
    paths = [find_idx(folder, stem) for stem in STEMS[split]]
    if paths[0] is None or paths[1] is None:
        raise DataError(f"expected {' and '.join(STEMS[split])} (or .gz) in {folder}")
    images, labels = read_idx(paths[0]), read_idx(paths[1])
    if images.ndim != 3 or labels.shape != (len(images),):
        raise DataError(f"{folder}: images {images.shape} and labels {labels.shape} do not belong together")
    return images[..., None].copy(), labels.astype(np.int64)
