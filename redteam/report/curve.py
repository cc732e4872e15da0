"""Success against budget: which records belong in one picture, and their means over seeds. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from redteam.core.hashing import canonical_json
from redteam.core.record import Record
from redteam.core.stats import CONFIDENCE, Estimate, across_cells

# Fields of an attack's config that say what success is; a curve holds them fixed.
GOAL = ("trigger", "trigger_strength", "trigger_cycles", "source", "target_class")

_Key = tuple[str, str, str, str]  # role, attack, origin, and the rest of its settings


@dataclass(frozen=True)
class Point:
    """The cells of one series at one budget."""

    budget: int
    cells: int
    victims: int
    pta: Estimate | None
    lift: Estimate | None
    cta: Estimate | None


@dataclass(frozen=True)
class Series:
    """One attack or control with one setting. ids: the records behind it."""

    label: str
    role: str
    points: tuple[Point, ...]
    ids: frozenset[str]


def of_metric(record: Record, name: str) -> Estimate | None:
    """A record's metric as an estimate, if it was measured."""
    m = record.metric(name)
    if m is None:
        return None
    return Estimate(m.value, m.low, m.high, m.n, m.seeds, m.method, m.confidence or CONFIDENCE)


def comparable(record: Record, siblings: Iterable[Record]) -> list[Record]:
    """`record` and the siblings with its task, goal and defences that were scored; each once, by id."""
    found = {s.id: s for s in siblings if s.status == "ok" and _same(s, record)}
    found[record.id] = record
    return [found[i] for i in sorted(found)]


def _same(a: Record, b: Record) -> bool:
    goals = [[r.cell.attack.config.get(k) for k in GOAL] for r in (a, b)]
    behind = [(r.cell.defenses, r.cell.knowledge if r.cell.defenses else None) for r in (a, b)]
    return a.cell.task == b.cell.task and goals[0] == goals[1] and behind[0] == behind[1]


def curve(records: Sequence[Record]) -> list[Series]:
    """Records by attack and setting, attacks first; within one, by budget, the seeds pooled."""
    groups: dict[_Key, list[Record]] = defaultdict(list)
    for r in records:
        rest = {k: v for k, v in r.cell.attack.config.items() if k not in (*GOAL, "budget")}
        key = (r.role, r.cell.attack.name, r.source, canonical_json([r.cell.attack.version, rest]))
        groups[key].append(r)
    labels = _labels(groups)
    return [
        Series(labels[key], key[0], _points(groups[key]), frozenset(r.id for r in groups[key]))
        for key in sorted(groups)
    ]


def _labels(groups: dict[_Key, list[Record]]) -> dict[_Key, str]:
    """The attack's name, with the settings in which it differs from its namesakes, its role and origin."""
    out = {}
    for key, records in groups.items():
        role, name, source, _ = key
        mine = records[0].cell.attack.config
        others = [g[0].cell.attack.config for k, g in groups.items() if k[1] == name]
        differs = [
            f"{k}={canonical_json(v)}"
            for k, v in sorted(mine.items())
            if k != "budget" and any(o.get(k) != v for o in others)
        ]
        notes = [*differs, *([role] if role != "attack" else []), *([source] if source != "measured" else [])]
        out[key] = f"{name} ({', '.join(notes)})" if notes else name
    return out


def _points(records: Sequence[Record]) -> tuple[Point, ...]:
    budgets: dict[int, list[Record]] = defaultdict(list)
    for r in records:
        budget = r.cell.attack.config.get("budget")
        if isinstance(budget, int):
            budgets[budget].append(r)
    return tuple(_point(b, sorted(budgets[b], key=lambda r: r.cell.seed)) for b in sorted(budgets))


def _point(budget: int, records: Sequence[Record]) -> Point:
    def pooled(name: str) -> Estimate | None:
        found = [e for r in records if (e := of_metric(r, name)) is not None]
        return across_cells(found) if found else None

    victims = sum(m.seeds for r in records if (m := r.metric("pta")) is not None)
    return Point(budget, len(records), victims, pooled("pta"), pooled("trigger_lift"), pooled("cta"))


def budgets(series: Iterable[Series]) -> list[int]:
    """The budgets above zero that occur."""
    return sorted({p.budget for s in series for p in s.points if p.budget > 0})


def rows(series: Iterable[Series]) -> list[dict[str, Any]]:
    """The curve as a table: one row a point."""
    return [
        {"label": s.label, "budget": p.budget, "cells": p.cells, "victims": p.victims,
         "pta": p.pta, "lift": p.lift, "cta": p.cta}
        for s in series for p in s.points
    ]  # fmt: skip
