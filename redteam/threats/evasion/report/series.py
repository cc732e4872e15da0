"""Evasion runs beside each other, and one run's radii, attacks, selectors and validations. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from redteam.core.hashing import canonical_json
from redteam.core.record import Metric, Record
from redteam.core.stats import Estimate, across_cells, paired_difference
from redteam.report import beside
from redteam.report.beside import Row, estimate, of_metric
from redteam.threats.evasion.artifact import Perturbed
from redteam.threats.evasion.metrics import by_radius, correct, radius_group, robust

TRADE = ("accuracy", "robust_accuracy", "attack_success", "pseudo_accuracy", "selection_gap")
_UNDER = ("robust_accuracy", "attack_success", "forwards_mean", "backwards_mean")
_FREE = ("curve",)  # the further radii: each is attacked by itself
Curve = tuple[tuple[float, Estimate], ...]


@dataclass(frozen=True)
class Line:
    """One defence over the radii. place: among all defences shown; own: this run alone, else the mean over seeds.

    points: (radius, robust accuracy), from radius 0, which is the accuracy.
    """

    label: str
    place: int
    own: bool
    ids: frozenset[str]
    points: Curve


@dataclass(frozen=True)
class AtRadius:
    """This run at one radius. forwards, backwards: means over images. drop: accuracy minus robust, paired."""

    eps: float
    main: bool
    robust: Estimate
    drop: Estimate
    forwards: float
    backwards: float


@dataclass(frozen=True)
class After:
    """The images after one attack of an ensemble. spent: [forwards, backwards] of the survivor that took most."""

    name: str
    stands: Metric
    broke: Metric
    spent: tuple[int, int] | None


@dataclass(frozen=True)
class Selected:
    """What one selector took. steps: for each victim."""

    name: str
    chosen: bool
    steps: tuple[int, ...]
    accuracy: Metric | None
    robust: Metric | None
    gap: Metric | None


@dataclass(frozen=True)
class Validated:
    """The validations after so many updates. values: criterion to (mean, least, most) over victims.

    chosen: victims whose state of this step is the one that was attacked.
    """

    step: int
    values: Mapping[str, tuple[float, float, float]]
    chosen: tuple[int, ...]


# ---------------------------------------------------------------- beside each other


def comparable(record: Record, siblings: Iterable[Record]) -> list[Record]:
    """`record` and the scored siblings with its task and attack, whatever their defences and further radii; by id.

    Each radius is attacked by itself, so that further ones change nothing at those two runs share.
    """
    return beside.comparable(record, siblings, lambda r: beside.same_attack(r, _FREE))


def other_attacks(record: Record, siblings: Iterable[Record]) -> list[Record]:
    """Scored runs of other attacks or controls on the very networks of `record`, in the same ball; by name."""
    mine = _networks(record)
    found = {s.id: s for s in siblings if s.status == "ok" and s.id != record.id and _networks(s) == mine}
    return sorted(found.values(), key=lambda s: (s.role == "control", s.cell.attack.name, s.id))


def _networks(record: Record) -> str:
    cell = record.cell
    trained = [d.model_dump(mode="json") for d in cell.defenses]
    ball = [cell.attack.config.get(k) for k in ("norm", "eps")]
    return canonical_json([cell.threat, cell.task.model_dump(mode="json"), trained, cell.seed, ball])


def attack_label(record: Record, others: Sequence[Record]) -> str:
    """The attack's name, with the settings in which it differs from its namesakes in `others`, and its role."""
    mine = record.cell.attack
    alike = (r.cell.attack.config for r in others if r.cell.attack.name == mine.name)
    parts = [f"{k} {canonical_json(v)}" for k, v in beside.differing(mine.config, alike, _FREE)]
    return ", ".join([mine.name, *parts, *(["control"] if record.role == "control" else [])])


def lines(record: Record, others: Sequence[Record]) -> list[Line]:
    """This run, then every other defence under the same attack, seeds pooled."""
    found = [(label, rows if i else [record]) for i, (label, rows) in enumerate(_defended(record, others))]
    return [
        Line(label, place, not place, beside.ids(rows), _over_radii(rows))
        for place, (label, rows) in enumerate(found)
    ]


def rows(record: Record, others: Sequence[Record]) -> list[Row]:
    """Every defence under this run's attack at the main radius, this run's first, seeds pooled."""
    return beside.rows(_defended(record, others), TRADE)


def _defended(record: Record, others: Sequence[Record]) -> list[tuple[str, list[Record]]]:
    """(label, records) of each defence, this run's first."""
    labels = beside.defense_labels(others)
    return [(labels[rows[0].id], rows) for rows in beside.by_defense(record, others).values()]


def _over_radii(records: Sequence[Record]) -> Curve:
    at: dict[float, list[Estimate]] = defaultdict(list)
    for r in records:
        if (clean := of_metric(r, "accuracy")) is not None:
            at[0.0].append(clean)
        for m in r.metrics:
            eps = float((m.group or "").removeprefix("eps=")) if (m.group or "").startswith("eps=") else 0.0
            if m.name == "robust_accuracy" and eps > 0:
                at[eps].append(estimate(m))
    return tuple((eps, at[eps][0] if len(at[eps]) == 1 else across_cells(at[eps])) for eps in sorted(at))


def attacks(record: Record, others: Sequence[Record]) -> list[Row]:
    """This run's attack, then the others on the same networks."""
    every = [record, *others]
    return beside.rows([(attack_label(r, every), [r]) for r in every], _UNDER)


# ---------------------------------------------------------------- one run


def radii(record: Record, artifact: Perturbed, outcomes: pd.DataFrame) -> list[AtRadius]:
    """This run at every radius. Robust accuracy is the record's; the rest is of the outcomes."""
    out = []
    for eps, t in by_radius(outcomes).items():
        stands = record.metric("robust_accuracy", radius_group(eps))
        if stands is None:
            continue
        drop = paired_difference(correct(t), robust(t))
        cost = float(t["forwards"].mean()), float(t["backwards"].mean())
        out.append(AtRadius(eps, eps == artifact.main, estimate(stands), drop, *cost))
    return out


def survivors(record: Record, artifact: Perturbed) -> list[After]:
    """The images after each attack of an ensemble at the main radius; empty for a single attack."""
    out, spent = [], artifact.notes.get("spent", {})
    for name in artifact.attacks:
        stands = record.metric("robust_accuracy", f"after={name}")
        broke = record.metric("broken_by", f"attack={name}")
        if stands is not None and broke is not None:
            took = spent.get(name)
            out.append(After(name, stands, broke, (int(took[0]), int(took[1])) if took else None))
    return out


def selected(record: Record, selection: pd.DataFrame | None) -> list[Selected]:
    """What every selector took, in the order of the table; empty where states were not compared."""
    if selection is None:
        return []
    out = []
    for name, part in selection.groupby("selector", sort=False):
        steps = part.groupby("victim")["step"].first()
        found = [
            record.metric(m, f"select={name}")
            for m in ("selected_accuracy", "selected_robust", "selection_gap")
        ]
        out.append(
            Selected(str(name), bool(part["chosen"].all()), tuple(int(s) for s in steps.sort_index()), *found)
        )
    return out


def validations(history: pd.DataFrame | None) -> list[Validated]:
    """Every validation of the training, by step."""
    if history is None or not len(history):
        return []
    out = []
    for step in sorted({int(s) for s in history["step"]}):
        part = history[history["step"] == step]
        values = {
            str(c): (float(v.mean()), float(v.min()), float(v.max()))
            for c, v in part.groupby("criterion", sort=False)["value"]
        }
        chosen = sorted({int(v) for v in part.loc[part["chosen"].astype(bool), "victim"]})
        out.append(Validated(step, values, tuple(chosen)))
    return out


def probed(probes: pd.DataFrame) -> list[tuple[str, list[tuple[float, int]]]]:
    """(probe, [(value, images) for each victim]) in the order of the table."""
    out = []
    for name, part in probes.groupby("name", sort=False):
        ordered = part.sort_values("victim", kind="stable")
        counts = zip(ordered["value"].astype(float), ordered["n"].astype(int), strict=True)
        out.append((str(name), [(float(v), int(n)) for v, n in counts]))
    return out
