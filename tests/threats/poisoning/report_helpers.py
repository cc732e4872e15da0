"""A small run folder made by hand: 14-pixel noise, a stripe trigger, 30 flips and two victims."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from redteam.core.record import PublishedNumber, Record
from redteam.core.scored import Scored
from redteam.core.stats import Estimate
from redteam.data.nouns import DatasetFacts, ImageDataset, ImageSet
from redteam.threats.poisoning import triggers
from redteam.threats.poisoning.artifact import Poison
from redteam.threats.poisoning.metrics import OUTCOME_COLUMNS, poisoning_metrics
from redteam.threats.poisoning.scorer import changes
from tests.leaderboards.helpers import PAPER, record
from tests.threats.pages import save_run

CLASSES = ("zero", "one", "two", "three", "four & more", "five", "six", "seven", "eight", "<b>x")
SOURCE, TARGET = 9, 4
STAGES = {"attack/expert": 41.3, "attack/labels": 12.06, "victims": 88.9, "reference victims": 90.2}


def dataset(channels: int = 1, size: int = 14, classes: Sequence[str] = CLASSES) -> ImageDataset:
    """Smooth random images, 40 of each class to train on and 20 to test."""
    rng = np.random.default_rng(5)

    def split(each: int) -> ImageSet:
        labels = np.repeat(np.arange(len(classes), dtype=np.int64), each)
        coarse = rng.integers(20, 235, (len(labels), 4, 4, channels)).astype(np.float64)
        fine = coarse.repeat(size // 4 + 1, 1).repeat(size // 4 + 1, 2)[:, :size, :size]
        return ImageSet(fine.astype(np.uint8), labels, tuple(classes))

    facts = DatasetFacts(
        mean=(0.5,) * channels,
        std=(0.2,) * channels,
        pad=2,
        flip=False,
        source_class=SOURCE,
        target_class=TARGET,
    )
    return ImageDataset("small", split(40), split(20), facts, "made in the tests", "none needed")


def poison(data: ImageDataset, name: str = "1xs", **parts: Any) -> Poison:
    """Thirty flips: most from the source class to the target, the others anywhere."""
    rng = np.random.default_rng(6)
    targets = data.train.labels.copy()
    rows = np.flatnonzero(targets == SOURCE)[:22]
    targets[rows] = TARGET
    others = rng.choice(np.flatnonzero(data.train.labels < 4), 8, replace=False)
    targets[others] = (targets[others] + 1 + rng.integers(0, 4, 8)) % len(data.classes)
    return Poison(targets, triggers.make(name, strength=12.0), SOURCE, TARGET, 30, **parts)


def outcomes(data: ImageDataset, hit: float = 0.7, victims: int = 2) -> pd.DataFrame:
    """Victims that are right at 0.9 of the plain images and turned at `hit` of the triggered ones."""
    rng = np.random.default_rng(7)
    label, n = data.test.labels, len(data.test)
    tables = []
    for victim in range(victims):

        def say(right: float) -> np.ndarray:
            return np.where(rng.random(n) < right, label, rng.integers(0, len(data.classes), n))

        turned = np.where((rng.random(n) < hit) & (label == SOURCE), TARGET, say(0.85))
        columns = (np.full(n, victim), np.arange(n), label, say(0.9), turned, say(0.92), say(0.9))
        tables.append(pd.DataFrame(dict(zip(OUTCOME_COLUMNS, columns, strict=True))).astype(np.int32))
    return pd.concat(tables, ignore_index=True)


def write_run(
    folder: Path, data: ImageDataset, artifact: Poison | None = None, hit: float = 0.7, **fields: Any
) -> Record:
    """A finished run. `fields`: of the record or its cell, as for `tests.leaderboards.helpers.record`."""
    artifact = artifact or poison(data)
    tables = {"flips": changes(artifact, data.train), "outcomes": outcomes(data, hit)}
    metrics = poisoning_metrics(tables["outcomes"], SOURCE, TARGET)
    n = len(artifact.targets)
    metrics["poison_rate"] = Estimate(len(tables["flips"]) / n, None, None, n, 1, "exact count")
    base = record(**{"published": PAPER, **fields})
    task = base.cell.task.model_copy(update={"dataset": data.name, "digest": data.digest})
    cell = base.cell.model_copy(update={"task": task})
    cost = base.cost.model_copy(update={"stages": STAGES, "wall_s": 233.4, "peak_rss_bytes": 734003200})
    scored = Scored(metrics, tables, base.flags)
    return save_run(folder, base, artifact, tables, scored, cell=cell, id=cell.id, cost=cost)


def sibling(of: Record, attack: str = "flip", **fields: Any) -> Record:
    """Another record of the same task as `of`."""
    made = record(attack, **fields)
    cell = made.cell.model_copy(update={"task": of.cell.task})
    return made.model_copy(update={"cell": cell, "id": cell.id})


def siblings(of: Record) -> list[Record]:
    """A curve of three budgets and three seeds, with controls."""
    found = [sibling(of, budget=b, seed=s, lift=lift) for b, lift in ((10, 0.2), (60, 0.8)) for s in range(3)]
    for name, lift in (("random-flips", 0.05), ("inner-product-flips", 0.15)):
        found += [sibling(of, name, budget=b, lift=lift + b / 400, role="control") for b in (10, 30, 60)]
    return [*found, sibling(of, "no-attack", budget=0, lift=0.01, half=0.02, role="control")]


NULL = PublishedNumber(metric="asr", value=None, source="nobody2020", where="table <9>")
