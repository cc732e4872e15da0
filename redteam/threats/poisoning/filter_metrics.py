"""Metrics of filters of poison, each defined once: what was removed, and how suspicion ranked. Pure functions.

The table has a row for each unit that a filter looked at, training row or appearance of a client: whether it was bad
(`poisoned`), whether it was removed, and its score (NaN: none), higher being more suspicious. A column `victim` tells
repeats of the whole experiment apart. Definitions with their denominators are in docs/metrics.md.

Intervals. Units of one victim: Wilson's, or, where the same client comes again in another round, errors clustered by
client and by round. AUROC: DeLong's variance, summed over strata and, where units recur, within each unit first,
with Student's t; where that variance is nothing, because all pairs agree, Wilson's on disjoint pairs. Several
victims: each gives its own value, and the mean is taken as over cells (they share the units).
Source: DeLong, DeLong and Clarke-Pearson 1988 for the variance of the AUROC, its sum over clusters after Obuchowski
1997 (both remembered, not read).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats as sps

from redteam.core.stats import CONFIDENCE, Estimate, across_cells, rate, two_way_clustered

# A sum of squares of residuals that cancel: rounding, not variance.
_NOTHING = 1e-15
NAMES = ("filter_tpr", "filter_fpr", "filter_precision", "filter_auroc")


def filter_metrics(
    table: pd.DataFrame,
    scored: str = "score",
    bad: str = "poisoned",
    removed: str = "removed",
    *,
    within: Sequence[str] | None = None,
    clusters: tuple[str, str] | None = None,
) -> dict[str, Estimate]:
    """filter_tpr, filter_fpr, filter_precision and filter_auroc of a table; those that are undefined are left out.

    Undefined: tpr without bad units, fpr without good ones, precision without bad units or where nothing was
    removed, auroc without a pair of a bad and a good unit that both have a score. A victim for which one is undefined
    does not count towards it.

    within: columns; scores are compared between units that agree in them; None: the given label, where
    the table has a column `given`, since filters score one label at a time.
    clusters: two columns, such as client and round, within either of which errors are correlated.
    """
    columns = [bad, removed, *(clusters or ())]
    _no_gaps(table, columns)
    if within is None:
        within = ("given",) if "given" in table else ()
    victims = [part for _, part in table.groupby("victim")] if "victim" in table else [table]
    found: dict[str, list[Estimate]] = {name: [] for name in NAMES}
    for part in victims:
        for name, estimate in _of_one(part, scored, bad, removed, within, clusters).items():
            found[name].append(estimate)
    return {name: over_victims(parts) for name, parts in found.items() if parts}


def filter_groups(table: pd.DataFrame, column: str, **settings: Any) -> dict[tuple[str, str], Estimate]:
    """The same on the part of the table with each value of `column`, by (name, "column=value")."""
    return {
        (name, f"{column}={value}"): estimate
        for value, part in table.groupby(column)
        for name, estimate in filter_metrics(part, **settings).items()
    }


def over_victims(estimates: Sequence[Estimate]) -> Estimate:
    """The mean over victims that share their units: the between-victim variance and the mean one within victims."""
    mean = across_cells(estimates)
    return mean if len(estimates) == 1 else replace(mean, method=mean.method.replace("cells", "victims"))


def _no_gaps(table: pd.DataFrame, columns: Sequence[str]) -> None:
    gaps = [c for c in columns if table[c].isna().any()]
    if gaps:
        raise ValueError(f"expected a value in every row of {', '.join(gaps)}")


def _of_one(
    table: pd.DataFrame, scored: str, bad: str, removed: str, within: Sequence[str],
    clusters: tuple[str, str] | None,
) -> dict[str, Estimate]:  # fmt: skip
    """The metrics of one victim."""
    is_bad, gone = table[bad].to_numpy(bool), table[removed].to_numpy(bool)
    labels = [table[c].to_numpy() for c in clusters or ()]
    parts = {
        "filter_tpr": (gone, is_bad),
        "filter_fpr": (gone, ~is_bad),
        "filter_precision": (is_bad, gone & is_bad.any()),
    }
    out = {
        name: _share(values[among], [own[among] for own in labels])
        for name, (values, among) in parts.items()
        if among.any()
    }
    scores = table[scored].to_numpy(np.float64)
    stratum = (
        table.groupby(list(within), dropna=False).ngroup().to_numpy() if within else np.zeros(len(table), int)
    )
    known = ~np.isnan(scores)
    unit = labels[0] if labels else np.arange(len(table))
    area = auroc(scores[known], is_bad[known], stratum[known], unit[known])
    return out if area is None else {**out, "filter_auroc": area}


def _share(values: np.ndarray, clusters: Sequence[np.ndarray]) -> Estimate:
    return two_way_clustered(values, clusters[0], clusters[1]) if clusters else rate(values)


# ---------------------------------------------------------------- ranking


@dataclass(frozen=True, slots=True)
class _Pairs:
    """One stratum. area: share of its pairs in order. bad, good: each unit's own share, (m,) and (n,)."""

    area: float
    bad: np.ndarray
    good: np.ndarray

    @property
    def count(self) -> int:
        """Pairs of a bad and a good unit."""
        return len(self.bad) * len(self.good)


def placements(bad: np.ndarray, good: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each bad unit the share of good ones that score lower, of each good one the share of bad ones that
    score higher; ties count half. bad: (m,) scores; good: (n,). Returns (m,) and (n,); both have the AUROC as mean.

    By midranks, in O((m + n) log(m + n)).
    """
    m, n = len(bad), len(good)
    together = sps.rankdata(np.concatenate([bad, good]))
    lower = (together[:m] - sps.rankdata(bad)) / n
    higher = 1 - (together[m:] - sps.rankdata(good)) / m
    return lower, higher


def auroc(
    scores: np.ndarray, bad: np.ndarray, stratum: np.ndarray, unit: np.ndarray, confidence: float = CONFIDENCE
) -> Estimate | None:
    """Of all pairs of a bad and a good unit in one stratum, the share in which the bad one scores higher; ties half.

    scores: (N,). bad: (N,) bool. stratum: (N,) only units of the same one are compared. unit: (N,) rows with the
    same one are the same unit again. None where there is no pair. n: rows that take part in a pair.
    """
    strata: list[_Pairs] = []
    units: list[tuple[np.ndarray, np.ndarray]] = []
    for value in np.unique(stratum):
        ones, zeros = ((stratum == value) & side for side in (bad, ~bad))
        if ones.any() and zeros.any():
            lower, higher = placements(scores[ones], scores[zeros])
            strata.append(_Pairs(float(lower.mean()), lower, higher))
            units.append((unit[ones], unit[zeros]))
    if not strata:
        return None
    weights = np.array([s.count for s in strata], np.float64)
    weights /= weights.sum()
    area = min(1.0, float(weights @ [s.area for s in strata]))
    n = sum(len(s.bad) + len(s.good) for s in strata)
    fewest = min(len(np.unique(np.concatenate([u[side] for u in units]))) for side in (0, 1))
    variance = _variance(strata, weights, units)
    if fewest < 2 or variance <= _NOTHING:
        flat = rate(np.full(fewest, area), confidence)
        low, high = min(area, flat.low or 0.0), max(area, flat.high or 0.0)
        return Estimate(area, low, high, n, 1, "wilson over disjoint pairs", confidence)
    half = float(sps.t.ppf(0.5 + confidence / 2, fewest - 1)) * sqrt(variance)
    return Estimate(area, max(0.0, area - half), min(1.0, area + half), n, 1, "delong-t", confidence)


def _variance(
    strata: Sequence[_Pairs], weights: np.ndarray, units: Sequence[tuple[np.ndarray, np.ndarray]]
) -> float:
    """Residuals of both sides, summed within each unit over all strata, then squared and summed.

    A side with one row shows no spread; the most that a share with its mean can have stands in for it.
    """
    residuals = []
    for pairs, weight in zip(strata, weights, strict=True):
        for own in (pairs.bad, pairs.good):
            k = len(own)
            left = own - pairs.area if k > 1 else np.full(1, sqrt(max(0.0, pairs.area * (1 - pairs.area))))
            residuals.append(weight * left / k * sqrt(k / (k - 1) if k > 1 else 1.0))
    codes = np.unique(np.concatenate([side for pair in units for side in pair]), return_inverse=True)[1]
    sums = np.bincount(codes.reshape(-1), weights=np.concatenate(residuals))
    return float((sums**2).sum())


def removed_by_weight(table: pd.DataFrame, by: Sequence[str], weight: str = "weight") -> np.ndarray:
    """(N,) bool: whether a client's weight is below half of the equal share of its round, zero included.

    by: columns that name a round. A filter gives zero; a rule of soft weights leaves a client out by degrees, and
    half an equal share is where it counts as out.
    """
    equal = 1.0 / table.groupby(list(by))[weight].transform("size").to_numpy(np.float64)
    below: np.ndarray = table[weight].to_numpy(np.float64) < equal / 2
    return below


def retrain_cost(costs: pd.DataFrame) -> dict[str, Estimate]:
    """retrain_cost: images put through training steps, over those of the undefended reference; mean over victims.

    costs: a row for each victim with `trained` and `base_trained`. Left out where a reference does not say.
    """
    if not len(costs) or (costs["base_trained"] <= 0).any():
        return {}
    cost = float((costs["trained"] / costs["base_trained"]).mean())
    return {"retrain_cost": Estimate(cost, None, None, len(costs), len(costs), "exact count")}
