"""One defence against others: paired differences over cells that are alike in everything but their defences.

Pure functions of records; `outcomes` of a record gives its table of per-image outcomes, or None.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from redteam.core.compare.choice import Pick, chosen, grouped, mean
from redteam.core.compare.difference import Outcomes, Question, difference, outcomes_in
from redteam.core.compare.names import Entry, entries
from redteam.core.compare.table import AVERAGED, Line, Listing, listing
from redteam.core.compare.worst import attacked, left_out, worst_cases, worst_entries
from redteam.core.errors import ConfigError, UnknownNameError
from redteam.core.record import Record
from redteam.core.stats import Estimate, over_strata

__all__ = [
    "AVERAGED", "Comparison", "Line", "Listing", "Outcomes", "Pick", "Question", "Row", "compare", "listing",
    "outcomes_in",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """base minus other. values: means of the metric of both, over the same cells. paired: `images` or `cells`.

    cells: pairs of cells that differ in their seed; of an average, tasks.
    """

    task: str
    attack: str
    base: str
    other: str
    difference: Estimate
    values: tuple[float, float]
    cells: int
    paired: str

    @property
    def relative(self) -> float | None:
        """The difference as a share of the other's value; None where that is zero."""
        return self.difference.value / self.values[1] if self.values[1] else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All rows, and what `by` chose. left_out: of worst cases, pairs that are not compared, and why."""

    question: Question
    rows: tuple[Row, ...]
    picks: tuple[Pick, ...]
    left_out: tuple[str, ...] = ()


def compare(records: Iterable[Record], question: Question, outcomes: Outcomes) -> Comparison:
    """base minus every other defence, on each task and under each attack, and averaged over tasks.

    Raises:
        ConfigError: there is nothing to compare. UnknownNameError: no such metric or defence.
        ArtifactError: evidence is missing, changed, or of other images in cells that are alike.
    """
    runs, outcomes, lacking = _seen(records, question, outcomes)
    picks: list[Pick] = []
    if question.by is not None:
        runs, picks = chosen(runs, question.by)
    base = _base(runs, question.base)
    left = lacking(runs, base)
    found = [
        pair for alike in grouped(runs, lambda e: e.alike) for pair in _rows(alike, base, question, outcomes)
    ]
    if not found:
        why = f". Left out, as other attacks ran: {left[0]}" if left else ""
        raise ConfigError(
            f"nothing to compare: no run behind another defence than '{base}' is like one of its runs in task, "
            f"attack and seed; run them with the same --dataset, settings and --seeds{why}"
        )
    rows = (*(row for row, _ in found), *_averages(found))
    return Comparison(question=question, rows=rows, picks=tuple(picks), left_out=tuple(left))


Lacking = Callable[[Sequence[Entry], str], list[str]]


def _seen(
    records: Iterable[Record], question: Question, outcomes: Outcomes
) -> tuple[list[Entry], Outcomes, Lacking]:
    """The runs of a question, where their outcomes are, and what tells which pairs have to be left out."""
    if not question.worst:
        runs = entries(_measured(records, question), chosen=question.by is not None)
        return runs, outcomes, lambda runs, base: []
    if question.group is not None:
        raise ConfigError(
            f"group: the worst case is at the main radius alone; got '{question.group}' with --worst"
        )
    found = worst_cases(attacked(records), outcomes)
    _measured([w.record for w in found], question)
    runs, outcomes = worst_entries(found, question.by)
    return runs, outcomes, lambda runs, base: left_out(runs, found, base)


def _measured(records: Iterable[Record], question: Question) -> list[Record]:
    """The finished runs that have the metric.

    Raises:
        ConfigError: no finished run. UnknownNameError: none has the metric.
    """
    done = [r for r in records if r.status == "ok"]
    if not done:
        raise ConfigError(
            "nothing to compare: expected finished runs, found none; run cells, or give --store"
        )
    measured = [r for r in done if r.metric(question.metric, question.group) is not None]
    if not measured and question.group is not None:
        groups = {m.group for r in done for m in r.metrics if m.name == question.metric and m.group}
        raise UnknownNameError(f"group of {question.metric} in these runs", question.group, groups)
    if not measured:
        raise UnknownNameError(
            "metric of these runs", question.metric, {m.name for r in done for m in r.metrics}
        )
    return measured


def _base(runs: Sequence[Entry], asked: str) -> str:
    """The one setting that the user's base means.

    Raises:
        UnknownNameError: none. ConfigError: several.
    """
    settings = {e.setting for e in runs}
    if asked in settings:
        return asked
    of = sorted({e.setting for e in runs if e.family == asked})
    if not of:
        raise UnknownNameError("defence of these runs", asked, settings)
    if len(of) > 1:
        known = "; ".join(of)
        raise ConfigError(
            f"base: '{asked}' ran with several settings; give one ({known}) or choose with --by"
        )
    return of[0]


def _rows(alike: Sequence[Entry], base: str, question: Question, outcomes: Outcomes) -> list[tuple[Row, str]]:
    """A row for each other setting that shares seeds with the base, and what its average goes over."""
    by_setting = {found[0].setting: found for found in grouped(alike, lambda e: e.setting)}
    ours = {e.record.cell.seed: e for e in by_setting.pop(base, [])}
    out = []
    for other, found in by_setting.items():
        pairs = [(ours[e.record.cell.seed], e) for e in found if e.record.cell.seed in ours]
        # An attack that knew the one and not the other is not the same attack.
        if not pairs or len({knew for pair in pairs for e in pair if (knew := e.knowledge)}) > 1:
            continue
        told, paired = difference([(a.record, b.record) for a, b in pairs], question, outcomes)
        first, second = (mean([p[i] for p in pairs], question.metric, question.group) for i in (0, 1))
        assert first is not None and second is not None
        row = Row(
            task=pairs[0][0].task, attack=pairs[0][0].attack, base=base, other=other, difference=told,
            values=(first, second), cells=len(pairs), paired=paired,
        )  # fmt: skip
        out.append((row, f"{pairs[0][0].across} {other}"))
    return out


def _averages(rows: Sequence[tuple[Row, str]]) -> list[Row]:
    """For each attack and other defence, the mean over its tasks, each of one weight, where there are several."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row, over in rows:
        groups[over].append(row)
    out = []
    for found in groups.values():
        if len(found) < 2:
            continue
        first, second = (float(np.mean([r.values[i] for r in found])) for i in (0, 1))
        by_images = all(r.paired == "images" for r in found)
        out.append(
            replace(
                found[0],
                task=AVERAGED,
                difference=over_strata([r.difference for r in found]),
                values=(first, second),
                cells=len(found),
                paired="images" if by_images else "cells",
            )
        )
    return out
