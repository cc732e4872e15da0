"""Backdoor triggers, exact to the byte: numbers plus one pure function, no closures.

Names and numbers are those of [jha2023flip]'s released code: `1xp` a pixel, `2xp` and `3xp` one of
two or three pixels, `1xs` vertical stripes, `2xs` vertical or horizontal stripes, `1xl` Turner's
corner patch ([turner2019label]), `4xl` the patch in all four corners. They act on uint8 images,
before any augmentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np

from redteam.core.errors import ConfigError

TriggerName = Literal["1xp", "2xp", "3xp", "1xs", "2xs", "1xl", "4xl"]
NAMES: tuple[str, ...] = get_args(TriggerName)

# (x, y) on a 32-pixel image, and the RGB value written there.
_PIXELS = (((11, 16), (101, 0, 25)), ((5, 27), (101, 123, 121)), ((30, 7), (0, 36, 54)))
_TURNER = np.array([[0, 0, 255], [0, 255, 0], [255, 0, 255]], np.uint8)


def make(name: str, *, strength: float = 6.0, cycles: float = 8.0) -> dict[str, Any]:
    """A trigger as plain numbers. strength: amplitude in grey levels; cycles: periods across the image.

    Raises:
        ConfigError: no such trigger.
    """
    if name not in NAMES:
        raise ConfigError(f"trigger: expected one of {', '.join(NAMES)}; got '{name}'")
    stripes = {"strength": float(strength), "cycles": float(cycles)}
    return {"name": name, **(stripes if name.endswith("s") else {})}


def apply(trigger: Mapping[str, Any], images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Stamp `trigger` on images (N, H, W, C) uint8. Returns new images; the input is untouched.

    rows: (N,) index of each image in its data set. A trigger with variants picks one by that index,
    so an image wears the same variant whatever batch it comes in.
    """
    name = trigger["name"]
    count, family = int(name[0]), name[2]
    if family == "p":
        return _pixels(images, _variant(rows, count))
    if family == "s":
        wave = trigger["strength"], trigger["cycles"]
        upright = _stripes(images, *wave)
        if count == 1:
            return upright
        lying = _stripes(images.transpose(0, 2, 1, 3), *wave).transpose(0, 2, 1, 3)
        return np.where(_variant(rows, 2)[:, None, None, None] == 0, upright, lying)
    return _corners(images, every=count == 4)


def direction(trigger: Mapping[str, Any], images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """What the trigger adds to each image: (N, H, W, C) float32 in grey levels."""
    return apply(trigger, images, rows).astype(np.float32) - images.astype(np.float32)


def _variant(rows: np.ndarray, count: int) -> np.ndarray:
    """One of `count` variants for each row index: a fixed integer hash (splitmix64), no generator state."""
    with np.errstate(over="ignore"):
        z = rows.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) % np.uint64(count)).astype(np.int64)


def _pixels(images: np.ndarray, variant: np.ndarray) -> np.ndarray:
    """Positions scale with the image (doubled at 64 pixels); grey images take the colour's luma."""
    out = images.copy()
    height, width, channels = images.shape[1:]
    for index, ((x, y), rgb) in enumerate(_PIXELS):
        value = rgb if channels == 3 else round(0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2])
        out[variant == index, y * height // 32, x * width // 32] = value
    return out


def _stripes(images: np.ndarray, strength: float, cycles: float) -> np.ndarray:
    """A sine along the columns, the same in all rows and channels; clipped, then truncated."""
    wave = strength * np.sin(np.linspace(0, 2 * np.pi * cycles, images.shape[2]))
    return np.clip(images + wave[None, None, :, None], 0, 255).astype(np.uint8)


def _corners(images: np.ndarray, *, every: bool) -> np.ndarray:
    out = images.copy()
    patch = _TURNER[:, :, None]
    out[:, -3:, -3:] = patch
    if every:
        out[:, :3, -3:] = patch[::-1]
        out[:, -3:, :3] = patch[:, ::-1]
        out[:, :3, :3] = patch[::-1, ::-1]
    return out
