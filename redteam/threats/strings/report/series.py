"""Success against queries: the runs of one task that lie beside each other, as curves. Pure but for reading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from redteam.core.errors import ArtifactError, RecordError
from redteam.core.record import Record
from redteam.core.stats import Estimate, rate
from redteam.core.store import read_run
from redteam.report.beside import by_setting, ids, pooled
from redteam.threats.strings.artifact import Strings

_MOST_POINTS = 80
POOLED = ("success", "success_found", "initial_success", "search_lift", "success_auc_queries")


@dataclass(frozen=True)
class Series:
    """One attack or control with one setting, over its seeds. found_at: (cells, strings), -1 where never.

    found_at is None where the files of no cell lie beside the run. asked: whether any query was made; what
    asks nothing has no curve but a level. cap: queries planned for one string.
    metrics: means over the cells. medians: `queries_to_success` of each cell that has it.
    """

    label: str
    role: str
    ids: frozenset[str]
    metrics: dict[str, Estimate | None]
    medians: tuple[float, ...]
    found_at: np.ndarray | None
    cap: float | None
    asked: bool = True

    def curve(self) -> list[tuple[float, Estimate]]:
        """(queries, share of the strings found with so many or fewer), at every step but at most 80.

        Of what asks nothing, fresh success all along.
        """
        if self.found_at is None:
            return []
        level = self.metrics.get("success")
        if not self.asked and level is not None:
            return [(0.0, level), (float(self.cap or 0.0), level)]
        seen = np.unique(self.found_at[self.found_at >= 0])
        if len(seen) > _MOST_POINTS:
            seen = np.unique(np.quantile(seen, np.linspace(0, 1, _MOST_POINTS), method="higher"))
        ends = [float(self.cap)] if self.cap and (not len(seen) or self.cap > seen[-1]) else []
        budgets = [*([] if len(seen) and seen[0] == 0 else [0.0]), *seen.astype(float).tolist(), *ends]
        hits = [(self.found_at >= 0) & (self.found_at <= b) for b in budgets]
        return [(b, rate(h)) for b, h in zip(budgets, hits, strict=True)]


def series(run: Path, beside: Sequence[Record], unit: str = "queries") -> list[Series]:
    """The records by attack and setting, attacks first. run: the folder whose neighbours hold their files.

    unit: what a search spends: queries, tokens or usd.
    """
    return [_series(label, run, records, unit) for label, records in by_setting(beside)]


def _series(label: str, run: Path, records: Sequence[Record], unit: str) -> Series:
    ordered = sorted(records, key=lambda r: r.cell.seed)
    found = [read for r in ordered if (read := _search(run, r, unit)) is not None]
    caps = [cap for _, cap, _ in found if cap]
    medians = [m.value for r in ordered if (m := r.metric("queries_to_success")) is not None]
    return Series(
        label=label,
        role=ordered[0].role,
        ids=ids(ordered),
        metrics={name: pooled(ordered, name) for name in POOLED},
        medians=tuple(medians),
        found_at=np.stack([at for at, _, _ in found]) if found else None,
        cap=max(caps) if caps else None,
        asked=any(asked for _, _, asked in found),
    )


def _search(run: Path, record: Record, unit: str) -> tuple[np.ndarray, float | None, bool] | None:
    """(queries at which each string was found, cap, whether any was asked) of a cell's files; None without them."""
    for folder in (run, run.parent / record.id):
        if not (folder / "record.json").is_file():
            continue
        try:
            found, artifact, tables = read_run(folder)
        except (ArtifactError, RecordError):
            continue
        if found.id == record.id and isinstance(artifact, Strings) and "search" in tables:
            search = tables["search"]
            cap = (artifact.notes.get("caps") or {}).get(unit)
            return _found_at(search, unit), cap, bool((search["queries"] > 0).any())
    return None


def _found_at(search: pd.DataFrame, unit: str) -> np.ndarray:
    ordered = search.sort_values("id", kind="stable")
    at: np.ndarray = np.where(ordered["found"].to_numpy(bool), ordered[f"{unit}_at"].to_numpy(np.float64), -1)
    return at
