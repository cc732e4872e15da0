"""Success against budget: which records belong in one picture, and their means over seeds. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redteam.core.record import Record
from redteam.core.stats import Estimate
from redteam.report import beside

# Fields of an attack's config that say what success is; a curve holds them fixed.
GOAL = ("trigger", "trigger_strength", "trigger_cycles", "source", "target_class")


@dataclass(frozen=True)
class Point:
    """The cells of one series at one budget. numbers: pta, trigger_lift and cta, the means over the cells."""

    budget: int
    cells: int
    victims: int
    numbers: Mapping[str, Estimate | None]


@dataclass(frozen=True)
class Series:
    """One attack or control with one setting. ids: the records behind it."""

    label: str
    role: str
    points: tuple[Point, ...]
    ids: frozenset[str]


def comparable(record: Record, siblings: Iterable[Record]) -> list[Record]:
    """`record` and the siblings with its task, goal and defences that were scored; each once, by id."""
    return beside.comparable(record, siblings, lambda r: (beside.same_question(r), goal(r)))


def goal(record: Record) -> list[Any]:
    """The settings that say what success is."""
    return [record.cell.attack.config.get(k) for k in GOAL]


def curve(records: Sequence[Record]) -> list[Series]:
    """Records by attack and setting, attacks first; within one, by budget, the seeds pooled."""
    return [
        Series(label, found[0].role, _points(found), beside.ids(found))
        for label, found in beside.by_setting(records, but=(*GOAL, "budget"))
    ]


def _points(records: Sequence[Record]) -> tuple[Point, ...]:
    budgets: dict[int, list[Record]] = defaultdict(list)
    for r in records:
        budget = r.cell.attack.config.get("budget")
        if isinstance(budget, int):
            budgets[budget].append(r)
    return tuple(_point(b, sorted(budgets[b], key=lambda r: r.cell.seed)) for b in sorted(budgets))


def _point(budget: int, records: Sequence[Record]) -> Point:
    victims = sum(m.seeds for r in records if (m := r.metric("pta")) is not None)
    numbers = {name: beside.pooled(records, name) for name in ("pta", "trigger_lift", "cta")}
    return Point(budget, len(records), victims, numbers)


def budgets(series: Iterable[Series]) -> list[int]:
    """The budgets above zero that occur."""
    return sorted({p.budget for s in series for p in s.points if p.budget > 0})
