"""Worst case over attacks: all attacks on the same networks at the same main radius, put together by image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from redteam.core import pairing
from redteam.core.compare.difference import Outcomes
from redteam.core.compare.names import Entry, attack_names, entries
from redteam.core.errors import ArtifactError, ConfigError
from redteam.core.hashing import canonical_json, digest_json
from redteam.core.record import Cell, Metric, Plugin, Record
from redteam.core.threat import pairing_of

_SAME = 1e-12


@dataclass(frozen=True, slots=True)
class Worst:
    """One worst case. record: as if one attack had run. table: its outcomes at the main radius.

    of: the attacks that it is of, by what each is, with its name. knew: of each, who knew of the defence. runs: what
    it is made of, by name.
    """

    record: Record
    table: pd.DataFrame
    of: Mapping[str, str]
    knew: Mapping[str, tuple[str, ...]]
    runs: Mapping[str, Record]


def worst_of_threat(record: Record) -> pairing.Worst:
    """How worst cases of runs like this one are put together."""
    found = pairing_of(record.cell.threat, record.cell.task.target)
    assert found is not None and found.worst is not None, "only runs that `attacked` let pass come here"
    return found.worst


def attacked(records: Iterable[Record]) -> list[Record]:
    """The finished runs of attacks whose threat knows a worst case, without controls.

    Raises:
        ConfigError: there is none.
    """
    done = [r for r in records if r.status == "ok" and r.role == "attack"]
    pairings = [pairing_of(r.cell.threat, r.cell.task.target) for r in done]
    found = [r for r, p in zip(done, pairings, strict=True) if p is not None and p.worst is not None]
    if not found:
        raise ConfigError(
            "worst case: expected finished runs of attacks that are judged image by image, found none; run "
            "some, or give --store"
        )
    return found


def identity(record: Record) -> str:
    """What an attack is: its name, version and all its settings."""
    return canonical_json(record.cell.attack.model_dump(mode="json"))


def networks(record: Record) -> str:
    """The networks that were attacked, and in which ball: equal for cells that a worst case is over."""
    cell = record.cell.model_dump(mode="json")
    return canonical_json(
        [cell["threat"], cell["task"], cell["defenses"], cell["seed"], worst_of_threat(record).ball(record)]
    )


def worst_cases(records: Sequence[Record], outcomes: Outcomes) -> list[Worst]:
    """One for each task, setting of the defences, seed and ball, over all attacks there.

    Raises:
        ArtifactError: outcomes are missing, or of other images than those of another attack on the same networks.
    """
    called = attack_names(records)
    groups: dict[str, list[Record]] = defaultdict(list)
    for r in records:
        groups[networks(r)].append(r)
    return [_together(sorted(g, key=lambda r: (called(r), r.id)), called, outcomes) for g in groups.values()]


def _together(found: Sequence[Record], called: Callable[[Record], str], outcomes: Outcomes) -> Worst:
    first = found[0]
    how = worst_of_threat(first)
    tables = [how.main(r, outcomes(r)) for r in found]
    for r, t in zip(found, tables, strict=True):
        if any(not np.array_equal(t[c], tables[0][c]) for c in ("victim", "index", "label")):
            raise ArtifactError(f"the runs {first.id} and {r.id} are alike, but judged on other images")
    table = how.merged(tables)
    of, knew = {identity(r): called(r) for r in found}, defaultdict(set)
    for r in found:
        knew[identity(r)].add(r.cell.knowledge)
    radius = float(table["eps"].iloc[0])
    cell = _cell(first.cell, how.ball(first)[0], radius, of)
    metrics = [Metric.of(name, e) for name, e in how.metrics(table, radius).items()]
    record = first.model_copy(
        update={"id": cell.id, "cell": cell, "evidence": (), "metrics": (*metrics, *_shared(found))}
    )
    return Worst(record, table, of, {k: tuple(sorted(v)) for k, v in knew.items()}, _apart(found, called))


def _apart(found: Sequence[Record], called: Callable[[Record], str]) -> dict[str, Record]:
    """The runs by name; of several of one name, also by what they knew and their version."""
    names = [called(r) for r in found]
    out: dict[str, Record] = {}
    for r, name in zip(found, names, strict=True):
        if names.count(name) > 1 and r.cell.knowledge == "oblivious":
            name += ", oblivious"
        out[name if name not in out else f"{name}, version {r.cell.attack.version}"] = r
    return out


def _cell(cell: Cell, norm: str, eps: float, of: Mapping[str, str]) -> Cell:
    config = {"norm": norm, "eps": eps, "of": sorted(of)}
    attack = Plugin(name=worst_of(of.values()), version="1", config=config, digest=digest_json(config))
    return cell.model_copy(update={"attack": attack, "knowledge": "adaptive"})


def _shared(found: Sequence[Record]) -> Iterator[Metric]:
    """What validation said of the networks, which is of no attack: where all runs agree on it."""
    for m in found[0].metrics:
        others = [r.metric(m.name, m.group) for r in found]
        alike = all(o is not None and abs(o.value - m.value) <= _SAME for o in others)
        if m.group is None and m.name.startswith(worst_of_threat(found[0]).of_networks) and alike:
            yield m


def worst_of(names: Iterable[str]) -> str:
    """`worst of apgd, pgd`."""
    told = sorted(names)
    return "worst of " + ("; " if any(", " in n for n in told) else ", ").join(told)


def worst_entries(found: Sequence[Worst], by: str | None) -> tuple[list[Entry], Outcomes]:
    """Worst cases as a comparison sees runs, and where their outcomes are. by: what will choose a setting.

    Raises:
        ConfigError: that hangs on the attacks, of which settings may have had different ones.
    """
    if by is not None and not all(by.startswith(worst_of_threat(w.record).of_networks) for w in found):
        raise ConfigError(
            f"by: expected a criterion of the networks alone such as val_pseudo, got '{by}', which hangs on the "
            "attacks; settings that met fewer of them would look better"
        )
    by_id = {w.record.id: w for w in found}
    bare = [w.record.model_copy(update={"cell": _without_attack(w.record.cell)}) for w in found]
    chosen, out = by is not None, []
    pairs = zip(entries([w.record for w in found], chosen), entries(bare, chosen), strict=True)
    for e, plain in pairs:
        config = e.record.cell.attack.config
        where = [config["norm"], config["eps"]]
        knowledge = canonical_json(dict(by_id[e.record.id].knew)) if e.record.cell.defenses else ""
        out.append(
            replace(
                e, attack=e.record.cell.attack.name, knowledge=knowledge,
                rivals=canonical_json([plain.alike, where]), stratum=canonical_json([plain.across, where]),
            )
        )  # fmt: skip
    return out, lambda r: by_id[r.id].table


def _without_attack(cell: Cell) -> Cell:
    return cell.model_copy(update={"attack": Plugin(name="", version="", config={}, digest="")})


def left_out(runs: Sequence[Entry], found: Sequence[Worst], base: str) -> list[str]:
    """Pairs of base and another defence that other attacks ran on, and so are not compared: what each lacks."""
    by_id = {w.record.id: w for w in found}
    ours = {(e.rivals, e.record.cell.seed): e for e in runs if e.setting == base}
    out = []
    for e in runs:
        mine = ours.get((e.rivals, e.record.cell.seed))
        if e.setting == base or mine is None:
            continue
        a, b = by_id[mine.record.id], by_id[e.record.id]
        sides = [(mine.setting, _lacks(a, b)), (e.setting, _lacks(b, a))]
        told = [f"{who} without {', '.join(names)}" for who, names in sides if names]
        if not told and mine.knowledge and e.knowledge and mine.knowledge != e.knowledge:
            told = ["some attack knew of the one defence and not of the other"]
        if told:
            out.append(f"{e.task}, seed {e.record.cell.seed}, {base} and {e.setting}: {'; '.join(told)}")
    return out


def _lacks(one: Worst, other: Worst) -> list[str]:
    """Names of the attacks that the other ran with and this one did not."""
    names = set(one.of.values())
    return sorted(
        f"that version of {name}" if name in names else name
        for key, name in other.of.items()
        if key not in one.of
    )
