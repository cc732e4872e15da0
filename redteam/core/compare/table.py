"""What there is, without a base: accuracy and robust accuracy of each defence under each attack and at worst."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from redteam.core.compare.choice import Pick, chosen
from redteam.core.compare.difference import Outcomes
from redteam.core.compare.names import Entry
from redteam.core.compare.worst import Worst, attacked, worst_cases, worst_entries, worst_of_threat
from redteam.core.record import Record
from redteam.core.stats import Estimate, across_cells, over_strata, rate

AVERAGED = "averaged over tasks"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One defence on one task, in one ball.

    attacks: robust accuracy by attack. worst: that of the worst case over `of`, from the seeds in which all of these
    ran; None on an average over tasks whose attacks differ. victims: networks a cell. seeds: cells; of an average,
    the fewest of a task. n: distinct test images of one cell; of an average, of all tasks.
    """

    task: str
    ball: str
    defence: str
    accuracy: Estimate
    attacks: Mapping[str, Estimate]
    worst: Estimate | None
    of: tuple[str, ...]
    n: int
    victims: int
    seeds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """All lines, and what `by` chose."""

    lines: tuple[Line, ...]
    picks: tuple[Pick, ...]


def listing(records: Iterable[Record], outcomes: Outcomes, by: str | None = None) -> Listing:
    """Every defence of a store: on each task, and averaged over the tasks that all of its kind share.

    Raises:
        ConfigError: no such run. UnknownNameError, ArtifactError: as `compare`.
    """
    runs = attacked(records)
    found = worst_cases(runs, outcomes)
    cells, _ = worst_entries(found, by)
    picks: list[Pick] = []
    if by is not None:
        cells, picks = chosen(cells, by)
    by_id = {w.record.id: w for w in found}
    groups: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for e in cells:
        groups[e.rivals, e.setting].append(e)
    rows = [(es[0].stratum, _line([(e, by_id[e.record.id]) for e in es], outcomes)) for es in groups.values()]
    return Listing(lines=(*(line for _, line in rows), *_averages(rows)), picks=tuple(picks))


def _line(cells: Sequence[tuple[Entry, Worst]], outcomes: Outcomes) -> Line:
    """The seeds of one defence on one task."""
    first = cells[0][0]
    how = worst_of_threat(first.record)
    clean, stands = [], defaultdict(list)
    for _, w in cells:
        tables = {name: how.main(r, outcomes(r)) for name, r in w.runs.items()}
        clean.append(rate(how.correct(next(iter(tables.values())))))
        for name, t in tables.items():
            stands[name].append(rate(how.robust(t)))
    whole = [w for _, w in cells if set(w.runs) == set(stands)]
    config = first.record.cell.attack.config
    return Line(
        task=first.task, ball=f"{config['norm']} {config['eps']}".strip(), defence=first.setting,
        accuracy=across_cells(clean), attacks={name: across_cells(stands[name]) for name in sorted(stands)},
        worst=across_cells([_robust(w) for w in whole]) if whole else None, of=tuple(sorted(stands)),
        n=clean[0].n, victims=clean[0].seeds, seeds=len(cells),
    )  # fmt: skip


def _robust(w: Worst) -> Estimate:
    t = {str(c): w.table[c].to_numpy().reshape(w.table["victim"].nunique(), -1) for c in w.table}
    return rate(worst_of_threat(w.record).robust(t))


def _averages(rows: Sequence[tuple[str, Line]]) -> list[Line]:
    """Means over tasks that differ in their data alone, of defences that have all of them."""
    strata: dict[str, list[Line]] = defaultdict(list)
    for key, line in rows:
        strata[key].append(line)
    out = []
    for lines in strata.values():
        tasks = {line.task for line in lines}
        for defence in dict.fromkeys(line.defence for line in lines):
            own = [line for line in lines if line.defence == defence]
            if len(tasks) > 1 and {line.task for line in own} == tasks:
                out.append(_average(own))
    return out


def _average(own: Sequence[Line]) -> Line:
    shared = [name for name in own[0].attacks if all(name in line.attacks for line in own)]
    worst = [line.worst for line in own if line.worst is not None and line.of == own[0].of]
    return Line(
        task=AVERAGED, ball=own[0].ball, defence=own[0].defence,
        accuracy=over_strata([line.accuracy for line in own]),
        attacks={name: over_strata([line.attacks[name] for line in own]) for name in shared},
        worst=over_strata(worst) if len(worst) == len(own) else None, of=own[0].of,
        n=int(np.sum([line.n for line in own])), victims=min(line.victims for line in own),
        seeds=min(line.seeds for line in own),
    )  # fmt: skip
