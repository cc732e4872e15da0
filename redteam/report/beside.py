"""Records beside each other: which stand on one page, what they are called, and their means over seeds. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redteam.core.hashing import canonical_json
from redteam.core.record import DefensePlugin, Metric, Record
from redteam.core.stats import CONFIDENCE, Estimate, across_cells
from redteam.report.words import UNDEFENDED, short

Settings = Callable[[Record], Sequence[Mapping[str, Any]]]


# ---------------------------------------------------------------- numbers


def estimate(m: Metric) -> Estimate:
    """A metric of a record, of whatever group, as an estimate."""
    return Estimate(m.value, m.low, m.high, m.n, m.seeds, m.method, m.confidence or CONFIDENCE)


def of_metric(record: Record, name: str) -> Estimate | None:
    """A record's metric over all examples as an estimate, if it was measured."""
    m = record.metric(name)
    return None if m is None else estimate(m)


def pooled(records: Iterable[Record], name: str) -> Estimate | None:
    """The mean of a metric over the records that have it."""
    found = [e for r in records if (e := of_metric(r, name)) is not None]
    return across_cells(found) if found else None


@dataclass(frozen=True)
class Row:
    """Records with one label, such as one defence, over their seeds.

    Args:
        place: among all that are shown, for its colour and marker.
        ids: the records behind it.
        numbers: metric to its mean over the seeds; None where it was not measured.
    """

    label: str
    place: int
    ids: frozenset[str]
    numbers: Mapping[str, Estimate | None]


def rows(groups: Iterable[tuple[str, Sequence[Record]]], names: Collection[str]) -> list[Row]:
    """A row for each (label, records), with the metrics in the order of `names`."""
    return [
        Row(label, place, ids(records), {name: pooled(records, name) for name in names})
        for place, (label, records) in enumerate(groups)
    ]


def ids(records: Iterable[Record]) -> frozenset[str]:
    """Their ids."""
    return frozenset(r.id for r in records)


# ---------------------------------------------------------------- which


def comparable(record: Record, siblings: Iterable[Record], same: Callable[[Record], Any]) -> list[Record]:
    """`record` and the scored siblings of which `same` says what it says of `record`; each once, by id."""
    found = {s.id: s for s in siblings if s.status == "ok" and same(s) == same(record)}
    found[record.id] = record
    return [found[i] for i in sorted(found)]


def same_question(record: Record) -> Any:
    """The task and the defences. Without a defence, knowing of it makes no difference."""
    cell = record.cell
    return cell.task, cell.defenses, cell.knowledge if cell.defenses else None


def same_attack(record: Record, but: Collection[str] = ()) -> str:
    """The task and the attack with its settings, other than those in `but`."""
    a = record.cell.attack
    rest = {k: v for k, v in a.config.items() if k not in but}
    task = record.cell.task.model_dump(mode="json")
    return canonical_json([task, record.role, record.source, a.name, a.version, rest])


# ---------------------------------------------------------------- names


def differing(
    config: Mapping[str, Any], others: Iterable[Mapping[str, Any]], but: Collection[str] = ()
) -> list[tuple[str, Any]]:
    """(name, value) of the settings in which a config differs from any of `others`, other than those in `but`."""
    every = list(others)
    return [(k, v) for k, v in sorted(config.items()) if k not in but and any(o.get(k) != v for o in every)]


def by_setting(records: Iterable[Record], but: Collection[str] = ()) -> list[tuple[str, list[Record]]]:
    """(label, records) of each attack or control with one setting, attacks first; the seeds together.

    Args:
        but: settings that tell nothing apart, such as the one along an axis.

    Returns:
        Labels are the attack's name with the settings in which it differs from its namesakes, its role and origin.
    """
    groups: dict[tuple[str, str, str, str], list[Record]] = defaultdict(list)
    for r in records:
        attack = r.cell.attack
        rest = {k: v for k, v in attack.config.items() if k not in but}
        groups[r.role, attack.name, r.source, canonical_json([attack.version, rest])].append(r)
    out = []
    for key in sorted(groups):
        role, name, source, _ = key
        others = [g[0].cell.attack.config for k, g in groups.items() if k[1] == name]
        notes = [
            *(f"{k}={canonical_json(v)}" for k, v in differing(groups[key][0].cell.attack.config, others, but)),
            *([role] if role != "attack" else []), *([source] if source != "measured" else []),
        ]  # fmt: skip
        out.append((f"{name} ({', '.join(notes)})" if notes else name, groups[key]))
    return out


# ---------------------------------------------------------------- defences


def configs(record: Record) -> list[Mapping[str, Any]]:
    """The defences' settings as they are."""
    return [d.config for d in record.cell.defenses]


def defense_key(record: Record, settings: Settings = configs) -> str:
    """What makes two runs' defences the same. Without a defence, knowing of it makes no difference."""
    cell = record.cell
    parts = [[d.name, d.version, s] for d, s in zip(cell.defenses, settings(record), strict=True)]
    return canonical_json([parts, cell.knowledge if cell.defenses else None])


def defense_labels(
    records: Sequence[Record], settings: Settings = configs, name: Callable[[DefensePlugin], str] | None = None,
    but: Collection[str] = (), *, knowledge: bool = True,
) -> dict[str, str]:  # fmt: skip
    """By record id: the defences, with the settings in which namesakes differ; `undefended` without any.

    Args:
        settings: a record's defences' settings, in their order.
        name: of a defence; by default that of its plug-in.
        but: settings that stand in the name already.
        knowledge: whether the label tells what the attack knew, where the same defences were met both ways.
    """
    every = [(d, s) for r in records for d, s in zip(r.cell.defenses, settings(r), strict=True)]
    known = {(_names(r), r.cell.knowledge) for r in records if r.cell.defenses}
    out = {}
    for r in records:
        parts = []
        for d, s in zip(r.cell.defenses, settings(r), strict=True):
            alike = [(o, t) for o, t in every if o.name == d.name]
            extra = [f"{k} {short(v)}" for k, v in differing(s, (t for _, t in alike), but)]
            extra += [f"version {d.version}"] if len({o.version for o, _ in alike}) > 1 else []
            parts.append(", ".join([name(d) if name else d.name, *extra]))
        both = knowledge and r.cell.defenses and sum(names == _names(r) for names, _ in known) > 1
        out[r.id] = (" + ".join(parts) or UNDEFENDED) + (f", {r.cell.knowledge}" if both else "")
    return out


def by_defense(
    record: Record, beside: Sequence[Record], settings: Settings = configs
) -> dict[str, list[Record]]:
    """By `defense_key`: this run's defence, none, then the others."""

    def order(r: Record) -> tuple[Any, ...]:
        return len(r.cell.defenses), _names(r), defense_key(r, settings), r.cell.seed, r.id

    out: dict[str, list[Record]] = {defense_key(record, settings): []}
    for r in sorted(beside, key=order):
        out.setdefault(defense_key(r, settings), []).append(r)
    return out


def _names(record: Record) -> tuple[str, ...]:
    return tuple(d.name for d in record.cell.defenses)
