"""Runs on one agent beside each other: what each defence keeps private and what it costs. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from redteam.core.hashing import canonical_json
from redteam.core.record import DefensePlugin, Record
from redteam.core.stats import Estimate
from redteam.report import beside
from redteam.report.beside import differing
from redteam.report.words import UNDEFENDED, short

_STRATEGIES = ("preserving", "agnostic", "multi-turn", "poisoned-task", "derived", "union", "refusals")
_MINIMISERS = {"model": 0, "rules": 2, "random": 3}  # another model: 1
_NAMED = ("minimiser", "strategy")  # settings that stand in the name


@dataclass(frozen=True)
class Point:
    """One defence setting under one attack, over its seeds. on: whether it is on the frontier of its group.

    shape: place of the defence among all that are shown. on is None where a metric is missing.
    """

    defense: str
    shape: int
    privacy: Estimate | None
    utility: Estimate | None
    ids: frozenset[str]
    on: bool | None = None


@dataclass(frozen=True)
class Group:
    """One attack with one setting against every defence setting. colour: its place among the attacks."""

    label: str
    role: str
    colour: int
    points: tuple[Point, ...]

    @property
    def ids(self) -> frozenset[str]:
        """The records behind it."""
        return frozenset[str]().union(*(p.ids for p in self.points))

    def stairs(self) -> list[tuple[float, float]]:
        """Corners (utility, privacy) of the edge of what the settings reach, from utility 0 to privacy 0.

        Sharing nothing and sharing everything are always within reach, and are its ends.
        """
        reached = {
            (p.utility.value, p.privacy.value) for p in self.points if p.on and p.utility and p.privacy
        }
        best = sorted(reached)
        corners = [(0.0, 1.0)]
        for i, (utility, privacy) in enumerate(best):
            before = best[i - 1][0] if i else 0.0
            corners += [(before, privacy), (utility, privacy)]
        return [*corners, (corners[-1][0] if best else 0.0, 0.0), (1.0, 0.0)]


def comparable(record: Record, siblings: Iterable[Record]) -> list[Record]:
    """`record` and the scored siblings with its task, whatever their attack and defences; each once, by id."""
    return beside.comparable(record, siblings, lambda r: r.cell.task)


def dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Whether `a` is at least as high as `b` in both numbers, and higher in one. Boards go by the same."""
    return a[0] >= b[0] and a[1] >= b[1] and a != b


def groups(records: Sequence[Record]) -> list[Group]:
    """The records by attack and setting, attacks first. Undefended runs stand in every group of their attack."""
    by_attack: dict[str, list[Record]] = defaultdict(list)
    for r in sorted(records, key=_order):
        a = r.cell.attack
        by_attack[canonical_json([r.role, r.source, a.name, a.version, a.config])].append(r)
    labels = attack_labels([found[0] for found in by_attack.values()])
    defences = beside.defense_labels(records, name=defense_name, but=_NAMED, knowledge=False)
    shown = dict.fromkeys(defences[r.id] for r in sorted(records, key=_behind))
    shapes = {name: i for i, name in enumerate(shown)}
    out: list[Group] = []
    for found in by_attack.values():
        told: list[str] = sorted({r.cell.knowledge for r in found if r.cell.defenses})
        for knowledge in told or [""]:
            mine = [r for r in found if not r.cell.defenses or r.cell.knowledge == knowledge]
            label = labels[found[0].id] + (f", {knowledge}" if len(told) > 1 else "")
            out.append(Group(label, found[0].role, len(out), _points(mine, defences, shapes)))
    return out


def _order(r: Record) -> tuple[Any, ...]:
    strategy = r.cell.attack.config.get("strategy")
    place = _STRATEGIES.index(strategy) if strategy in _STRATEGIES else len(_STRATEGIES)
    return (r.role != "attack", r.cell.attack.name, place, str(strategy), r.source, r.cell.seed, r.id)


def _behind(r: Record) -> tuple[Any, ...]:
    """Undefended first; prompts before air gaps; air gaps by minimiser: models, rules, random."""
    found = r.cell.defenses
    minimisers = [d.config["minimiser"] for d in found if "minimiser" in d.config]
    gaps = [_MINIMISERS.get(m, 1) for m in minimisers]
    return len(found), len(gaps), gaps, [d.name for d in found], canonical_json([d.config for d in found])


def _points(records: Sequence[Record], names: dict[str, str], shapes: dict[str, int]) -> tuple[Point, ...]:
    by_defense: dict[str, list[Record]] = defaultdict(list)
    for r in sorted(records, key=lambda r: (_behind(r), r.cell.seed)):
        by_defense[names[r.id]].append(r)
    found = {
        name: (beside.pooled(rows, "privacy"), beside.pooled(rows, "utility"), beside.ids(rows))
        for name, rows in by_defense.items()
    }
    pairs = {name: (u.value, p.value) for name, (p, u, _) in found.items() if p is not None and u is not None}
    return tuple(
        Point(name, shapes[name], privacy, utility, ids, _on(pairs, name))
        for name, (privacy, utility, ids) in found.items()
    )


def _on(pairs: dict[str, tuple[float, float]], name: str) -> bool | None:
    return None if name not in pairs else not any(dominates(o, pairs[name]) for o in pairs.values())


# ---------------------------------------------------------------- names


def attack_labels(records: Sequence[Record]) -> dict[str, str]:
    """By record id: name and strategy, and the settings in which namesakes of one strategy differ."""
    out = {}
    for r in records:
        mine = r.cell.attack
        alike = [
            o.cell.attack for o in records
            if o.cell.attack.name == mine.name and o.cell.attack.config.get("strategy") == mine.config.get("strategy")
        ]  # fmt: skip
        parts = [
            attack_name(r),
            *(f"{k} {short(v)}" for k, v in differing(mine.config, (a.config for a in alike), _NAMED)),
        ]
        parts += [f"version {mine.version}"] if len({a.version for a in alike}) > 1 else []
        parts += [r.role] if r.role != "attack" else []
        parts += [r.source] if r.source != "measured" else []
        out[r.id] = ", ".join(parts)
    return out


def attack_name(record: Record) -> str:
    """`context-hijack preserving`: the attack, with its strategy if it has any."""
    attack = record.cell.attack
    return " ".join(filter(None, (attack.name, attack.config.get("strategy"))))


def defense_name(defense: DefensePlugin) -> str:
    """`privacy-prompt`; of an air gap, which is another one with another minimiser, `airgap (minimiser rules)`."""
    minimiser = defense.config.get("minimiser")
    return defense.name if minimiser is None else f"{defense.name} (minimiser {short(minimiser)})"


def behind(record: Record) -> str:
    """`airgap (minimiser rules)`, or `undefended`."""
    return " + ".join(map(defense_name, record.cell.defenses)) or UNDEFENDED
