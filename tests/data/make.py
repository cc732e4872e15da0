"""Small data sets in the formats the loaders read."""

from __future__ import annotations

import gzip
import io
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    """Random uint8 of any shape."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(image: np.ndarray, kind: str = "PNG", mode: str | None = None) -> bytes:
    """An image file in memory; (H, W) is grey, (H, W, 1) too."""
    picture = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)
    buffer = io.BytesIO()
    (picture.convert(mode) if mode else picture).save(buffer, kind)
    return buffer.getvalue()


def write_parquet(
    path: Path,
    images: Sequence[bytes | None],
    labels: Sequence[Any],
    *,
    image: str = "image",
    label: str = "label",
    names: Sequence[str] | None = None,
    raw: bool = False,
    extra: Mapping[str, Sequence[Any]] | None = None,
) -> None:
    """One Hugging Face Parquet file; `raw` puts bytes in the column instead of a struct."""
    path.parent.mkdir(parents=True, exist_ok=True)
    column = pa.array(images if raw else [{"bytes": data, "path": None} for data in images])
    table = pa.table({image: column, label: list(labels), **(extra or {})})
    if names is not None:
        features = {image: {"_type": "Image"}, label: {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=2)


def write_parquet_set(
    folder: Path, train: np.ndarray, test: np.ndarray, kind: str = "PNG", **options: Any
) -> None:
    """Both splits, labels 0, 1, ... in turn over `classes` (2 unless given)."""
    classes = options.pop("classes", 2)
    for split, images in (("train", train), ("test", test)):
        labels = [i % classes for i in range(len(images))]
        data = [encode(image, kind) for image in images]
        write_parquet(folder / f"{split}-00000-of-00001.parquet", data, labels, **options)


def idx_bytes(array: np.ndarray) -> bytes:
    """An unsigned-byte IDX file."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx_set(folder: Path, train: np.ndarray, test: np.ndarray, *, packed: bool = False) -> None:
    """The four files of MNIST; labels 0 to 9 in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, images in (("train", train), ("t10k", test)):
        labels = (np.arange(len(images)) % 10).astype(np.uint8)
        for stem, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
            data = idx_bytes(array)
            name = f"{stem}.gz" if packed else stem
            (folder / name).write_bytes(gzip.compress(data, mtime=0) if packed else data)


def write_folder(root: Path, content: Mapping[str, Sequence[np.ndarray]], kind: str = "png") -> Path:
    """Image files; keys are folders such as `train/cat`."""
    for folder, images in content.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(images):
            (root / folder / f"{i}.{kind}").write_bytes(encode(image, "JPEG" if kind != "png" else "PNG"))
    return root
