"""Runs as a comparison sees them: which are alike, and what their tasks, attacks and defences are called."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redteam.core import registry
from redteam.core.config import to_json
from redteam.core.hashing import canonical_json
from redteam.core.record import DefensePlugin, Plugin, Record
from redteam.core.threat import pairing_of

NOTHING = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One run. setting: its defences with their unusual settings; family: their names alone.

    knowledge: who knew of the defence, empty without one. alike: what comparable runs share, but for the seed.
    across: the same without the data set, which averages go over. rivals: what runs share among which `--by`
    chooses a setting; `alike`, but for worst cases, whose choice does not hang on which attacks ran. stratum: the
    same without the data set.
    """

    record: Record
    task: str
    attack: str
    setting: str
    family: str
    knowledge: str
    alike: str
    across: str
    rivals: str
    stratum: str


def entries(records: Sequence[Record], chosen: bool) -> list[Entry]:
    """The runs. chosen: whether hyper-parameters of the training belong to the setting, and not to the task."""

    def free(r: Record) -> frozenset[str]:
        pairing = pairing_of(r.cell.threat, r.cell.task.target) if chosen else None
        return pairing.training if pairing is not None else frozenset()

    task = _call(records, lambda r: (f"{r.cell.task.model} on {r.cell.task.dataset}", _without(r, free(r))))
    attack = attack_names(records)
    family = {r.id: " + ".join(d.name for d in r.cell.defenses) or NOTHING for r in records}
    trained = _call(
        records, lambda r: (family[r.id], {k: r.cell.task.config.get(k) for k in sorted(free(r))})
    )
    out = []
    for r in records:
        told = trained(r).removeprefix(family[r.id])
        what = [r.cell.threat, r.cell.attack.model_dump(), r.cell.task.model, _without(r, free(r))]
        oblivious = ", oblivious" if r.cell.defenses and r.cell.knowledge == "oblivious" else ""
        alike = canonical_json([*what, r.cell.task.dataset, r.cell.task.digest, r.cell.task.version])
        out.append(
            Entry(
                record=r,
                task=task(r),
                attack=attack(r),
                setting=label(r.cell.defenses) + told + oblivious,
                family=family[r.id] + oblivious,
                knowledge=r.cell.knowledge if r.cell.defenses else "",
                alike=alike,
                across=canonical_json(what),
                rivals=alike,
                stratum=canonical_json(what),
            )
        )
    return out


def attack_names(records: Sequence[Record]) -> Callable[[Record], str]:
    """Names of attacks, each with the settings in which it differs from others of that name.

    Of an attack that comes in a standard version and others, another version is no part of the settings but of the
    name: `autoattack (custom)` is not AutoAttack.
    """
    return _call(records, lambda r: (_titled(r.cell.attack), r.cell.attack.config))


def _titled(attack: Plugin) -> str:
    version = attack.config.get("version", "standard")
    return attack.name if version == "standard" else f"{attack.name} ({version})"


def _without(r: Record, keys: frozenset[str]) -> dict[str, Any]:
    return {k: v for k, v in r.cell.task.config.items() if k not in keys}


def label(defenses: Sequence[DefensePlugin]) -> str:
    """The defences, each with those of its settings that differ from its defaults; `none` for none."""
    return " + ".join(_one(d) for d in defenses) or NOTHING


def _one(d: DefensePlugin) -> str:
    usual: dict[str, Any] = {}
    told = []
    if d.name in registry.names("defense"):
        spec = registry.get("defense", d.name)
        usual = to_json(spec.presets["default"].config)
        told = [f"version {d.version}"] if spec.version != d.version else []
    told += [f"{k}={v}" for k, v in d.config.items() if k not in usual or usual[k] != v]
    return f"{d.name} ({', '.join(told)})" if told else d.name


def _call(
    records: Sequence[Record], of: Callable[[Record], tuple[str, Mapping[str, Any]]]
) -> Callable[[Record], str]:
    """Names, each with the settings in which it differs from others of that name."""
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for r in records:
        name, config = of(r)
        groups[name].append(config)
    apart = {
        name: [k for k in dict.fromkeys(k for c in configs for k in c) if _differs(k, configs)]
        for name, configs in groups.items()
    }

    def named(r: Record) -> str:
        name, config = of(r)
        return ", ".join([name, *(f"{k} {_short(config.get(k))}" for k in apart[name])])

    return named


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "/".join(map(_short, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _differs(key: str, configs: Sequence[Mapping[str, Any]]) -> bool:
    return len({canonical_json(c.get(key)) for c in configs}) > 1
