"""Colour textures made by rule, where the original domains have photographs: nothing here is a picture of anything.

Whole-number arithmetic and Pillow's fixed-point resizing alone, so that the same draws give the same bytes.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from redteam.core.seeding import SeedPath

SIDE = 96
_COUNT = 200


def textures(seeds: SeedPath, count: int = _COUNT) -> np.ndarray:
    """So many textures: (count, 96, 96, 3) uint8. Each is a stream of its own: more of them change none."""
    made = [_texture(seeds.child("texture", i).numpy()) for i in range(count)]
    return np.stack(made) if made else np.empty((0, SIDE, SIDE, 3), np.uint8)


def crop(pictures: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random square of a random texture, mirrored or turned at random: (size, size, 3) uint8."""
    which = int(rng.integers(len(pictures)))
    y, x = rng.integers(0, SIDE - size + 1, 2).tolist()
    turn, mirror = divmod(int(rng.integers(8)), 2)
    patch = np.rot90(pictures[which, y : y + size, x : x + size], turn)
    return patch[:, ::-1] if mirror else patch


def _texture(rng: np.random.Generator) -> np.ndarray:
    """A pattern over clouds, with saturation, contrast and brightness of its own."""
    pattern = (_clouds, _cells, _stripes, _bricks)[int(rng.integers(4))](rng)
    mixed = (2 * pattern + 3 * _clouds(rng)) // 5
    grey = mixed.sum(axis=2, keepdims=True) // 3
    colour = int(rng.integers(2, 9))
    mixed = (colour * mixed + (8 - colour) * grey) // 8
    contrast, brightness = int(rng.integers(4, 11)), int(rng.integers(40, 181))
    stretched = (mixed - 128) * contrast // 6 + brightness
    return np.asarray(np.clip(stretched, 0, 255), dtype=np.uint8)


def _grid(rng: np.random.Generator, cells: int, resample: Image.Resampling) -> np.ndarray:
    """Random colours on a coarse grid, enlarged: (96, 96, 3) int32."""
    coarse = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), resample)).astype(np.int32)


def _clouds(rng: np.random.Generator) -> np.ndarray:
    """Noise at three scales."""
    bicubic = Image.Resampling.BICUBIC
    coarse, middle, fine = (_grid(rng, cells, bicubic) for cells in (4, 12, 48))
    return np.asarray((4 * coarse + 3 * middle + fine) // 8)


def _cells(rng: np.random.Generator) -> np.ndarray:
    """Each pixel has the colour of the nearest of some points."""
    points = int(rng.integers(12, 72))
    at = rng.integers(0, SIDE, (points, 2))
    colours = rng.integers(0, 256, (points, 3)).astype(np.int32)
    squares = (np.arange(SIDE, dtype=np.int32)[:, None] - at.T[:, None, :].astype(np.int32)) ** 2
    return np.asarray(colours[(squares[0][:, None] + squares[1][None]).argmin(axis=2)])


def _stripes(rng: np.random.Generator) -> np.ndarray:
    """Parallel stripes of two to five colours."""
    colours = rng.integers(0, 256, (int(rng.integers(2, 6)), 3)).astype(np.int32)
    a, b = int(rng.integers(-4, 5)), int(rng.integers(1, 5))
    width = int(rng.integers(2, 9)) * (abs(a) + b)
    y, x = np.mgrid[:SIDE, :SIDE]
    return np.asarray(colours[(a * x + b * y) // width % len(colours)])


def _bricks(rng: np.random.Generator) -> np.ndarray:
    """Random colours on a grid with hard edges."""
    return _grid(rng, int(rng.integers(4, 15)), Image.Resampling.NEAREST)
