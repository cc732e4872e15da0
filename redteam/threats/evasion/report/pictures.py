"""Clean and perturbed test images beside each other as PNG data URIs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from redteam.core.errors import DataError
from redteam.data.nouns import ImageSet
from redteam.report.pictures import png_uri
from redteam.threats.evasion.artifact import Perturbed

FOOLED, STOOD = 8, 4


@dataclass(frozen=True)
class Example:
    """One test image. plain, moved, change: data URIs; said_*: what victim 0 answered.

    by: the attack it fell to, or None where it stood. distance: how far it was moved, in the norm of the ball.
    """

    index: int
    label: int
    plain: str
    moved: str
    change: str
    said_plain: int
    said_moved: int
    by: str | None
    distance: float


@dataclass(frozen=True)
class Pictures:
    """The first images that were fooled, and the first that stood and were kept. factor: of the magnification."""

    fooled: tuple[Example, ...]
    stood: tuple[Example, ...]
    factor: float


def eight_bits(image: np.ndarray) -> np.ndarray:
    """(C, H, W) in [0, 1] as (H, W, C) uint8."""
    rounded: np.ndarray = np.clip(np.rint(image.transpose(1, 2, 0) * 255), 0, 255).astype(np.uint8)
    return rounded


def magnified(change: np.ndarray, factor: float) -> np.ndarray:
    """A perturbation (C, H, W) times `factor` around mid-grey, clipped: (H, W, C) uint8."""
    return eight_bits(0.5 + factor * change)


def factor_for(changes: Sequence[np.ndarray]) -> float:
    """What makes the largest change of any pixel span the range from mid-grey; two significant digits, never more."""
    most = max((float(np.abs(c).max()) for c in changes), default=0.0)
    if most < 1e-6:
        return 1.0
    # Rounding of float32 must not take a factor of 5 to 4.9.
    exact = 0.5 / most * (1 + 1e-5)
    digits = 1 - int(np.floor(np.log10(exact)))
    return float(np.floor(exact * 10.0**digits) / 10.0**digits)


def examples(artifact: Perturbed, outcomes: pd.DataFrame, images: ImageSet) -> Pictures:
    """Of victim 0 at the main radius, by index, whatever the pictures look like.

    images: the test images as the network sees them, in the order of the outcomes' index.

    Raises:
        DataError: `images` are not those that were attacked.
    """
    radius = int(np.flatnonzero(artifact.eps == artifact.main)[0])
    mine = outcomes[(outcomes["victim"] == 0) & (outcomes["eps"] == artifact.main)]
    table = mine.sort_values("index", kind="stable").reset_index(drop=True)
    if len(table) != len(images) or (table["label"].to_numpy() != images.labels).any():
        raise DataError(
            f"expected the {len(table)} test images of this run, got {len(images)} others; leave them out"
        )
    at = (artifact.where[:, 0] == 0) & (artifact.where[:, 1] == radius)
    kept = {int(row): int(i) for i, row in zip(np.flatnonzero(at), artifact.where[at, 2], strict=True)}
    columns = ("label", "clean", "adversarial", "attack")
    label, clean, said, named = (table[c].to_numpy(np.int64) for c in columns)
    wanted = [
        [int(i) for i in np.flatnonzero((clean == label) & which) if int(i) in kept][:many]
        for which, many in ((said != label, FOOLED), (said == label, STOOD))
    ]
    plain = {
        i: images.images[i].transpose(2, 0, 1).astype(np.float64) / 255 for i in [*wanted[0], *wanted[1]]
    }
    changes = {i: artifact.images[kept[i]].astype(np.float64) - plain[i] for i in plain}
    factor = factor_for(list(changes.values()))
    distance = table["moved"].to_numpy(np.float64)

    def one(i: int) -> Example:
        by = artifact.attacks[max(int(named[i]), -1)] if said[i] != label[i] else None
        return Example(
            index=i, label=int(label[i]), plain=png_uri(eight_bits(plain[i])),
            moved=png_uri(eight_bits(artifact.images[kept[i]])), change=png_uri(magnified(changes[i], factor)),
            said_plain=int(clean[i]), said_moved=int(said[i]), by=by, distance=float(distance[i]),
        )  # fmt: skip

    fooled, stood = (tuple(map(one, chosen)) for chosen in wanted)
    return Pictures(fooled, stood, factor)
