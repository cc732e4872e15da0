"""Data that needs no network: scikit-learn's digits, and the Fashion-MNIST shipped with the package."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np

from redteam.core.errors import DataError
from redteam.data.facts import LAPTOP_RECIPE, customary_facts
from redteam.data.labels import DIGITS, FASHION
from redteam.data.nouns import DatasetFacts, ImageDataset, ImageSet
from redteam.data.shipped import EMBEDDED_DIR, read_checked

MANIFEST = "manifest.json"

# mean and std: computed by facts.channel_stats from the 60,000 training images as shipped.
# The pair (bag to coat), the stripes and the recipe: see "what was tried" in docs/cards/flip.md.
FASHION14_FACTS = DatasetFacts(
    mean=(0.287357,), std=(0.331076,), pad=0, flip=False, source_class=8, target_class=4,
    stripe_strength=24.0, recipe={**LAPTOP_RECIPE, "epochs": 12},
)  # fmt: skip
MINI_ROWS = 20_000

_DIGITS_TEST = 500


def shrink(images: np.ndarray) -> np.ndarray:
    """Halve the resolution and keep 6 bits.

    Each pixel is the rounded mean of a 2x2 block, then rounded to a multiple of 4 (252 at most).

    Args:
        images: (N, H, W) uint8 with even H and W.

    Returns:
        (N, H/2, W/2) uint8.
    """
    n, h, w = images.shape
    blocks = images.reshape(n, h // 2, 2, w // 2, 2).sum(axis=(2, 4), dtype=np.uint16)
    mean = (blocks + 2) // 4
    small: np.ndarray = (np.minimum(63, (mean + 2) // 4) * 4).astype(np.uint8)
    return small


def pack(array: np.ndarray) -> bytes:
    """The array as .npy bytes under xz; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME)


def unpack(data: bytes) -> np.ndarray:
    """Inverse of `pack`."""
    array: np.ndarray = np.load(io.BytesIO(lzma.decompress(data)), allow_pickle=False)
    return array


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        files: dict[str, Any] = json.loads((folder / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder / MANIFEST} is missing or damaged ({error}); reinstall redteam") from error
    return files


def _read(folder: Path, name: str, files: dict[str, Any]) -> np.ndarray:
    return unpack(read_checked(folder / name, files.get(name, {}).get("sha256", "none")))


def load_fashion14(folder: Path = EMBEDDED_DIR, rows: int | None = None) -> ImageDataset:
    """Fashion-MNIST at 14x14 in its original order: 60,000 training images, or the first `rows`; 10,000 test.

    Raises:
        DataError: a shipped file is missing or was changed.
    """
    files = _read_manifest(folder)
    sets = {}
    for split in ("train", "test"):
        images = _read(folder, f"{split}-images.npy.xz", files)
        labels = _read(folder, f"{split}-labels.npy.xz", files)
        kept = slice(rows if split == "train" else None)
        sets[split] = ImageSet(images[kept, ..., None], labels[kept].astype(np.int64), FASHION)
    return ImageDataset(
        name="fashion-mnist-14" if rows is None else "fashion-mini",
        train=sets["train"],
        test=sets["test"],
        facts=FASHION14_FACTS,
        source="Fashion-MNIST (Zalando Research), 2x2 means rounded to 6 bits; shipped with redteam",
        licence="MIT, Copyright (c) 2017 Zalando SE",
    )


def _test_rows(labels: np.ndarray, count: int) -> np.ndarray:
    """A stratified choice of rows that depends on nothing but labels and row numbers.

    Within a class, rows are ranked by the sha256 of their number; each class gives its share of `count`,
    the largest remainders rounded up.
    """
    sizes = np.bincount(labels)
    share = sizes * count / len(labels)
    take = np.floor(share).astype(int)
    by_remainder = np.argsort(take - share, kind="stable")
    take[by_remainder[: count - take.sum()]] += 1
    chosen: list[int] = []
    for label, k in enumerate(take):
        rows = np.flatnonzero(labels == label).tolist()
        rows.sort(key=lambda row: hashlib.sha256(f"digits/{row}".encode()).digest())
        chosen += rows[:k]
    return np.sort(np.array(chosen))


def load_digits() -> ImageDataset:
    """scikit-learn's 1,797 digits of 8x8, split once and for all into 1,297 / 500."""
    from sklearn.datasets import load_digits as sklearn_digits

    bunch = sklearn_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int64)
    held_out = np.zeros(len(labels), bool)
    held_out[_test_rows(labels, _DIGITS_TEST)] = True
    return ImageDataset(
        name="digits",
        train=ImageSet(images[~held_out], labels[~held_out], DIGITS),
        test=ImageSet(images[held_out], labels[held_out], DIGITS),
        facts=customary_facts("digits", len(DIGITS)),
        source="Optical Recognition of Handwritten Digits (Alpaydin, Kaynak; UCI), the copy in scikit-learn",
        licence="CC BY 4.0",
    )
