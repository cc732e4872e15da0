"""Digits like those of MNIST-M, SYN and SVHN, made by rule. Their names carry a star: they are not the originals.

mnist-m*: MNIST digits blended with colour textures, |patch - digit| per channel, as MNIST-M does with photographs.
syn*: one digit of a font, of random size, place, slant and colours, on a plain ground; some have a neighbour.
svhn*: digits of a font on a coloured, textured ground with neighbours cut off at the sides; blurred, low in
contrast, noisy. The last two need no data. Row i is a function of the recipe's name, its version and i alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from math import cos, radians, sin
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, features

from redteam.core.errors import DataError
from redteam.core.seeding import SeedPath
from redteam.threats.evasion.data.textures import crop, textures

SIZE = 32
CLASSES = 10
# Raise it when a recipe's pixels change: it is part of every stream and of the cache's key.
VERSION = 1

_SANS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Bold")
_SERIF = ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol")
FONTS = (*_SANS, *_SERIF, "STIXGeneralItalic", "cmr10", "cmb10", "cmss10", "cmtt10")

Colour = tuple[int, int, int]


def seeds_of(name: str) -> SeedPath:
    """The root of a recipe's streams."""
    return SeedPath(0, ("domains", name, str(VERSION)))


def versions() -> dict[str, str]:
    """What the drawn bytes depend on beside this file: fonts are drawn by FreeType through Pillow."""
    import matplotlib
    import PIL

    return {
        "Pillow": PIL.__version__,
        "FreeType": str(features.version("freetype2")),
        "matplotlib": matplotlib.__version__,
        "numpy": np.__version__,
    }


@lru_cache(maxsize=2)
def _pictures(seeds: SeedPath) -> np.ndarray:
    pictures = textures(seeds)
    pictures.flags.writeable = False
    return pictures


# ---------------------------------------------------------------- mnist-m*


def blend(digits: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """|patch - digit| per channel, with a random patch of a made texture.

    digits: (N, 32, 32) uint8. ids: (N,) the digits' own numbers, which alone decide their patches.
    Returns (N, 32, 32, 3) uint8.
    """
    seeds = seeds_of("mnist-m*")
    pictures = _pictures(seeds)
    out = np.empty((*digits.shape, 3), np.uint8)
    for i, base in enumerate(ids.tolist()):
        patch = crop(pictures, SIZE, seeds.child(base).numpy())
        np.abs(patch.astype(np.int16) - digits[i, :, :, None], out=out[i], casting="unsafe")
    return out


# ---------------------------------------------------------------- syn* and svhn*


def draw_syn(count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` rows of syn*: (N, 32, 32, 3) uint8 and labels (N,) int64, 0 to 9 in turn."""
    return _draw(count, seeds_of("syn*"), _syn)


def draw_svhn(count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` rows of svhn*: (N, 32, 32, 3) uint8 and labels (N,) int64, 0 to 9 in turn."""
    seeds = seeds_of("svhn*")
    pictures = _pictures(seeds)
    return _draw(count, seeds, lambda digit, draws: _svhn(digit, draws, pictures))


class _Draws:
    """Uniform numbers from a stream, fetched in blocks: one call of numpy a number would cost more than the drawing."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self._block: list[float] = []

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        if not self._block:
            self._block = self.rng.random(48).tolist()
        return low + (high - low) * self._block.pop()

    def chance(self, p: float) -> bool:
        """True with probability `p`."""
        return self.uniform(0.0, 1.0) < p

    def below(self, n: int) -> int:
        """A whole number in [0, n)."""
        return int(self.uniform(0.0, n))


def _draw(
    count: int, seeds: SeedPath, one: Callable[[int, _Draws], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(count, dtype=np.int64) % CLASSES
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)
    for i in range(count):
        images[i] = one(int(labels[i]), _Draws(seeds.child(i).numpy()))
    return images, labels


def _syn(digit: int, draws: _Draws) -> np.ndarray:
    ground = _colour(draws)
    fill = _apart(draws, ground, 60)
    image = _plain(draws, ground)
    edge = _apart(draws, fill, 40) if draws.chance(0.4) else None
    _paste(image, draws, _with_neighbours(draws, digit, 0.2), fill, edge, height=(0.5, 0.9), angle=30.0)
    if draws.chance(0.4):
        image = image.filter(ImageFilter.GaussianBlur(draws.uniform(0.2, 0.6)))
    return np.asarray(image)


def _svhn(digit: int, draws: _Draws, pictures: np.ndarray) -> np.ndarray:
    ground = _colour(draws)
    fill = _apart(draws, ground, 70)
    image = _plain(draws, ground)
    if draws.chance(0.7):
        patch = Image.fromarray(np.ascontiguousarray(crop(pictures, SIZE, draws.rng)))
        image = Image.blend(image, patch, draws.uniform(0.1, 0.35))
    edge = _apart(draws, fill, 40) if draws.chance(0.25) else None
    _paste(image, draws, _with_neighbours(draws, digit, 0.75), fill, edge, height=(0.55, 0.95), angle=12.0)
    image = image.filter(ImageFilter.GaussianBlur(draws.uniform(0.1, 1.0)))
    pixels = np.asarray(image, dtype=np.float32)
    contrast, brightness = draws.uniform(0.5, 1.0), draws.uniform(-20.0, 20.0)
    middle = pixels.mean(axis=(0, 1)) * (1.0 - contrast) + brightness
    noise = draws.rng.standard_normal(pixels.shape, dtype=np.float32) * draws.uniform(0.0, 7.0)
    changed = np.clip(np.rint(pixels * contrast + middle + noise), 0, 255)
    return np.asarray(changed, dtype=np.uint8)


def _with_neighbours(draws: _Draws, digit: int, p: float) -> tuple[str, str, str]:
    """The digit between two others, each there with probability `p`."""
    left, right = (str(draws.below(CLASSES)) if draws.chance(p) else "" for _ in range(2))
    return left, str(digit), right


def _colour(draws: _Draws) -> Colour:
    return draws.below(256), draws.below(256), draws.below(256)


def _luma(colour: Colour) -> float:
    """Brightness as the eye weighs it (ITU-R BT.601)."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def _apart(draws: _Draws, other: Colour, least: float) -> Colour:
    """A colour that differs from another in brightness by at least so much, of 255."""
    while True:
        colour = _colour(draws)
        if abs(_luma(colour) - _luma(other)) >= least:
            return colour


def _plain(draws: _Draws, ground: Colour) -> Image.Image:
    """One colour; or, half of the time, four corners of darker or lighter shades of it."""
    if draws.chance(0.5):
        return Image.new("RGB", (SIZE, SIZE), ground)
    shades = [[[draws.uniform(-28.0, 28.0)] for _ in range(2)] for _ in range(2)]
    corners = np.clip(np.array(ground) + shades, 0, 255).astype(np.uint8)
    return Image.fromarray(corners).resize((SIZE, SIZE), Image.Resampling.BILINEAR)


def _paste(
    image: Image.Image, draws: _Draws, text: tuple[str, str, str], fill: Colour, edge: Colour | None, *,
    height: tuple[float, float], angle: float,
) -> None:  # fmt: skip
    """Draw the middle digit and its neighbours onto an image, in one font, turned and sheared as one.

    height: range of the digit's height, a share of the image's. angle: at most so many degrees either way.
    """
    tall = draws.uniform(*height) * SIZE
    font = _font(FONTS[draws.below(len(FONTS))], round(tall / 0.7))
    stroke = 1 + draws.below(2) if edge else 0
    layer = Image.new("RGBA", (2 * SIZE, 2 * SIZE), (*(edge or fill), 0))
    draw = ImageDraw.Draw(layer)
    left, top, right, bottom = font.getbbox(text[1])
    wide, high, gap = right - left, bottom - top, draws.uniform(0.04, 0.2) * tall
    x, y = SIZE - wide / 2 - left, SIZE - high / 2 - top
    starts = (x - gap - font.getlength(text[0]), x, x + wide + gap)
    for start, digit in zip(starts, text, strict=True):
        if digit:
            draw.text((start, y), digit, (*fill, 255), font, stroke_width=stroke, stroke_fill=edge)
    aside = 0.4 * max(0.0, SIZE - wide)
    if text[0] or text[2]:
        aside = min(aside, wide / 8)  # the labelled digit stays the one nearest to the middle
    shift = draws.uniform(-aside, aside), 0.4 * max(0.0, SIZE - high) * draws.uniform(-1.0, 1.0)
    turned = layer.transform(
        (SIZE, SIZE), Image.Transform.AFFINE, _affine(draws, angle, shift), Image.Resampling.BILINEAR
    )
    image.paste(turned, mask=turned)


def _affine(draws: _Draws, angle: float, shift: tuple[float, float]) -> tuple[float, ...]:
    """From a place in the image to one in the layer of twice its size: a turn, a slant, a width, about the middle."""
    turn, slant, narrow = (
        radians(draws.uniform(-angle, angle)),
        draws.uniform(-0.2, 0.2),
        draws.uniform(0.9, 1.35),
    )
    c, s = cos(turn), sin(turn)
    a, b, d, e = narrow * c - slant * s, narrow * s + slant * c, -s, c
    x, y = SIZE / 2 + shift[0], SIZE / 2 + shift[1]
    return a, b, SIZE - a * x - b * y, d, e, SIZE - d * x - e * y


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font that matplotlib ships.

    Raises:
        DataError: this matplotlib does not ship it.
    """
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    try:
        return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)
    except OSError as error:
        raise DataError(
            f"syn* and svhn* are drawn with fonts that matplotlib ships; expected {path}: {error}. "
            "Reinstall matplotlib"
        ) from error
