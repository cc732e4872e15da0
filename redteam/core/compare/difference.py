"""The difference of one metric between pairs of cells: by images where both have them, else over cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats as sps

from redteam.core.errors import ArtifactError
from redteam.core.hashing import digest_file
from redteam.core.record import Record
from redteam.core.stats import CONFIDENCE, Estimate, across_cells, paired_difference
from redteam.core.threat import pairing_of

# Differences that rounding alone tells apart.
_ALIKE = 1e-12
Outcomes = Callable[[Record], pd.DataFrame | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is compared. metric, group: as records name them. base: a defence's name or label; `none`: undefended.

    by: a metric that chooses one setting of each defence, such as `val_pseudo`; None: every setting stands alone.
    worst: all attacks on the same networks count as one, that an image withstands if it withstands each of them.
    """

    metric: str
    base: str
    group: str | None = None
    by: str | None = None
    worst: bool = False


def outcomes_in(root: Path) -> Outcomes:
    """Reads the per-image outcomes of runs in a store.

    Raises:
        ArtifactError: a table that the record names is missing or was changed.
    """

    kept: dict[str, pd.DataFrame | None] = {}

    def read(record: Record) -> pd.DataFrame | None:
        if record.id not in kept:
            kept[record.id] = fresh(record)
        return kept[record.id]

    def fresh(record: Record) -> pd.DataFrame | None:
        ref = next((e for e in record.evidence if Path(e.path).stem == "outcomes"), None)
        if ref is None:
            return None
        path = root / record.id / ref.path
        if not path.is_file() or digest_file(path) != ref.sha256:
            raise ArtifactError(f"{path} is missing or was changed; run the attack again to make it")
        return pd.read_parquet(path)

    return read


def difference(
    pairs: Sequence[tuple[Record, Record]], question: Question, outcomes: Outcomes
) -> tuple[Estimate, str]:
    """By images where every cell has them, else over cells."""
    tables = [tuple(_images(r, question, outcomes) for r in pair) for pair in pairs]
    found = []
    for (ours, theirs), (a, b) in zip(pairs, tables, strict=True):
        if a is None or b is None:
            return over_cells([_value(p, question) - _value(q, question) for p, q in pairs]), "cells"
        if a.shape != b.shape:
            raise ArtifactError(f"the runs {ours.id} and {theirs.id} are alike, but judged on other images")
        found.append(paired_difference(a, b))
    return across_cells(found), "images"


def _value(r: Record, question: Question) -> float:
    metric = r.metric(question.metric, question.group)
    assert metric is not None
    return metric.value


def _images(r: Record, question: Question, outcomes: Outcomes) -> np.ndarray | None:
    """(victims, images) booleans whose mean is the metric; None where the run has none."""
    pairing = pairing_of(r.cell.threat, r.cell.task.target)
    if pairing is None or pairing.examples is None or (table := outcomes(r)) is None:
        return None
    return pairing.examples(r, table, question.metric, question.group)


def over_cells(differences: Sequence[float]) -> Estimate:
    """The mean of one difference a pair of cells, with Student's t over the pairs; for one pair, no interval."""
    x = np.asarray(differences, np.float64)
    k, mean = len(x), float(x.mean())
    if k == 1:
        return Estimate(mean, None, None, 1, 1, "one pair of cells and no images: no interval")
    if np.ptp(x) <= _ALIKE:
        return Estimate(mean, None, None, k, k, "all pairs of cells alike: no interval")
    half = float(sps.t.ppf(0.5 + CONFIDENCE / 2, k - 1)) * float(x.std(ddof=1)) / k**0.5
    return Estimate(mean, mean - half, mean + half, k, k, "t-over-paired-cells")
