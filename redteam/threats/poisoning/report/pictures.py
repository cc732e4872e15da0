"""Triggered examples as PNG data URIs, and where the changed labels fell. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from redteam.data.nouns import ImageDataset
from redteam.report.pictures import png_uri
from redteam.threats.poisoning import triggers
from redteam.threats.poisoning.artifact import Poison

EXAMPLES = 8
AMPLIFIED = 8
_MANY_CLASSES = 12
_DARKEST = 0.6


@dataclass(frozen=True)
class Example:
    """One test image. plain, triggered, difference: data URIs; said_*: what victim 0 answered."""

    index: int
    label: int
    plain: str
    triggered: str
    difference: str
    said_plain: int
    said_triggered: int
    hit: bool


def amplified(plain: np.ndarray, triggered: np.ndarray) -> np.ndarray:
    """The change times `AMPLIFIED` around mid-grey, clipped. Both (..., H, W, C) uint8."""
    change = triggered.astype(np.int64) - plain.astype(np.int64)
    return np.clip(128 + AMPLIFIED * change, 0, 255).astype(np.uint8)


def examples(artifact: Poison, outcomes: pd.DataFrame, dataset: ImageDataset) -> list[Example]:
    """The first test images of the source class, whatever the victim made of them."""
    first = outcomes[outcomes["victim"] == outcomes["victim"].min()].sort_values("index", kind="stable")
    label = first["label"]
    wanted = label != artifact.target_class if artifact.source_class < 0 else label == artifact.source_class
    chosen = first[wanted].head(EXAMPLES)
    rows = chosen["index"].to_numpy(np.int64)
    plain = dataset.test.images[rows]
    stamped = triggers.apply(artifact.trigger, plain, rows)
    differences = amplified(plain, stamped)
    answers = (chosen[c].tolist() for c in ("index", "label", "clean", "triggered"))
    return [
        Example(
            index=index, label=label, plain=png_uri(a), triggered=png_uri(b), difference=png_uri(c), said_plain=clean,
            said_triggered=triggered, hit=triggered == artifact.target_class,
        )
        for index, label, clean, triggered, a, b, c in zip(*answers, plain, stamped, differences, strict=True)
    ]  # fmt: skip


@dataclass(frozen=True)
class HeatMap:
    """Counts of changed rows. shown: class numbers; counts: (K, K), true class by given class."""

    shown: tuple[int, ...]
    counts: np.ndarray

    @property
    def total(self) -> int:
        """All changed rows."""
        return int(self.counts.sum())

    def opacity(self, count: int) -> str:
        """How strongly a cell is coloured, 0 to 0.6 of full colour, so that the count stays readable."""
        return f"{_DARKEST * count / max(1, int(self.counts.max())):.3f}"

    def rows(self) -> list[tuple[int, list[int]]]:
        """(true class, counts by given class)."""
        return [(c, row.tolist()) for c, row in zip(self.shown, self.counts, strict=True)]


def heat_map(flips: pd.DataFrame, classes: Sequence[str] | None) -> HeatMap:
    """Where the changes fell; all classes if there are few, else those that occur."""
    true, given = flips["true"].to_numpy(np.int64), flips["given"].to_numpy(np.int64)
    occurring = np.unique(np.concatenate([true, given]))
    every = classes is not None and len(classes) <= _MANY_CLASSES
    shown = np.arange(len(classes)) if classes is not None and every else occurring
    counts = np.zeros((len(shown), len(shown)), np.int64)
    np.add.at(counts, (np.searchsorted(shown, true), np.searchsorted(shown, given)), 1)
    return HeatMap(tuple(int(c) for c in shown), counts)
