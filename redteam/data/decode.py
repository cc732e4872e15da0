"""Encoded images to one array: what the Parquet and the folder loaders share."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from redteam.core.errors import DataError

_JPEG_MAGIC = b"\xff\xd8"
_GREY_MODES = frozenset({"1", "L", "LA", "La"})
# What Pillow's decoders raise on damaged bytes, beside OSError.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def is_jpeg(data: bytes) -> bool:
    """Whether the bytes start like a JPEG file: lossy."""
    return data[:2] == _JPEG_MAGIC


def decode(data: bytes, where: str, size: int | None = None) -> np.ndarray:
    """Decode one image.

    Grey stays grey (16 bits keep their upper 8); palettes and alpha become RGB.

    Args:
        data: the encoded file.
        where: names the image in an error.
        size: resize the shorter side to this and crop the centre square.

    Returns:
        (H, W) or (H, W, 3) uint8.

    Raises:
        DataError: the bytes are no image, are damaged, or hold 32-bit pixels.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.load()
            image = _to_8_bits(opened, where)
    except _DAMAGED as error:
        raise DataError(f"cannot decode the image in {where}: {error}") from error
    if size is not None:
        image = ImageOps.fit(image, (size, size), method=Image.Resampling.BILINEAR)
    return np.asarray(image)


def _to_8_bits(image: Image.Image, where: str) -> Image.Image:
    if image.mode in ("L", "RGB"):
        return image.copy()
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError(f"expected 8 or 16 bits per channel in {where}, got Pillow mode {image.mode}")
    return image.convert("L" if image.mode in _GREY_MODES else "RGB")


class ImageStack:
    """Fills one array image by image, so that decoding never holds two copies of a data set.

    It starts grey and turns to RGB when the first colour image arrives.
    """

    def __init__(self, count: int, hint: str = "") -> None:
        self._count, self._hint, self._filled = count, hint, 0
        self._first = ""
        self._images = np.empty((0, 0, 0, 1), np.uint8)

    def add(self, image: np.ndarray, where: str) -> None:
        """Append an image of (H, W) or (H, W, 3) uint8.

        Raises:
            DataError: its size differs from the first image's.
        """
        channels = 1 if image.ndim == 2 else 3
        if not self._filled:
            self._first = where
            self._images = np.empty((self._count, *image.shape[:2], channels), np.uint8)
        if image.shape[:2] != self._images.shape[1:3]:
            raise size_error(self._images.shape, self._first, image.shape, where, self._hint)
        if channels > self._images.shape[3]:
            self._images = np.repeat(self._images, 3, axis=3)
        self._images[self._filled] = image[..., None] if channels == 1 else image
        self._filled += 1

    def finish(self) -> np.ndarray:
        """The whole stack: (N, H, W, C) uint8."""
        assert self._filled == self._count, (self._filled, self._count)
        return self._images


def size_error(a: tuple[int, ...], where_a: str, b: tuple[int, ...], where_b: str, hint: str) -> DataError:
    """Two sizes seen where one was expected; a and b end in or start with height and width."""
    (ha, wa), (hb, wb) = (s[1:3] if len(s) == 4 else s[:2] for s in (a, b))
    return DataError(
        f"expected images of one size, saw {wa}x{ha} ({where_a}) and {wb}x{hb} ({where_b}){hint}"
    )


def read_files(files: Iterable[Path], count: int, size: int | None, hint: str = "") -> np.ndarray:
    """Decode `count` files into one array (N, H, W, C) uint8.

    Raises:
        DataError: a file cannot be read or decoded, or sizes differ.
    """
    stack = ImageStack(count, hint)
    for path in files:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error
        stack.add(decode(data, str(path), size), str(path))
    return stack.finish()


def match_splits(train: np.ndarray, test: np.ndarray, hint: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Give both splits as many channels as the richer one.

    Raises:
        DataError: they differ in size.
    """
    if train.shape[1:3] != test.shape[1:3]:
        raise size_error(train.shape, "training set", test.shape, "test set", hint)
    channels = max(train.shape[3], test.shape[3])
    return tuple(a if a.shape[3] == channels else np.repeat(a, 3, axis=3) for a in (train, test))  # type: ignore[return-value]
