"""One defence against others: paired differences over cells that are alike in everything but their defences.

Pure functions of records; `outcomes` of a record gives its table of per-image outcomes, or None.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from redteam.compare.difference import Outcomes, Question, difference, outcomes_in
from redteam.compare.names import Entry, entries
from redteam.errors import ConfigError, UnknownNameError
from redteam.record import Record
from redteam.stats import Estimate, over_strata

__all__ = ["Comparison", "Outcomes", "Pick", "Question", "Row", "compare", "outcomes_in"]
AVERAGED = "averaged over tasks"


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
class Pick:
    """A setting that was chosen, the mean of the criterion over its cells, and out of how many settings."""

    task: str
    attack: str
    defence: str
    setting: str
    value: float
    cells: int
    among: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All rows, and what `by` chose."""

    question: Question
    rows: tuple[Row, ...]
    picks: tuple[Pick, ...]


def compare(records: Iterable[Record], question: Question, outcomes: Outcomes) -> Comparison:
    """base minus every other defence, on each task and under each attack, and averaged over tasks.

    Raises:
        ConfigError: there is nothing to compare. UnknownNameError: no such metric or defence.
        ArtifactError: evidence is missing, changed, or of other images in cells that are alike.
    """
    runs = entries(_measured(records, question), chosen=question.by is not None)
    picks: list[Pick] = []
    if question.by is not None:
        runs, picks = _chosen(runs, question.by)
    base = _base(runs, question.base)
    found = [
        pair for alike in _groups(runs, lambda e: e.alike) for pair in _rows(alike, base, question, outcomes)
    ]
    if not found:
        raise ConfigError(
            f"nothing to compare: no run behind another defence than '{base}' is like one of its runs in task, "
            "attack and seed; run them with the same --dataset, settings and --seeds"
        )
    return Comparison(
        question=question, rows=(*(row for row, _ in found), *_averages(found)), picks=tuple(picks)
    )


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


def _groups(runs: Iterable[Entry], key: Callable[[Entry], str]) -> list[list[Entry]]:
    groups: dict[str, list[Entry]] = defaultdict(list)
    for e in runs:
        groups[key(e)].append(e)
    return list(groups.values())


def _chosen(runs: Sequence[Entry], by: str) -> tuple[list[Entry], list[Pick]]:
    """On each task and attack, the runs of each defence's best setting by the mean of a criterion over seeds.

    Of a defence's settings, only those that ran with the most seeds compete. The first of equals is taken.

    Raises:
        UnknownNameError: a defence has several settings, and no run of it has the criterion.
    """
    kept: list[Entry] = []
    picks: list[Pick] = []
    for alike in _groups(runs, lambda e: e.alike):
        for of in _groups(alike, lambda e: e.family):
            settings = _groups(of, lambda e: e.setting)
            best = settings[0]
            if len(settings) > 1:
                most = max(map(len, settings))
                judged = [(v, s) for s in settings if len(s) == most and (v := _mean(s, by)) is not None]
                if not judged:
                    names = {m.name for e in of for m in e.record.metrics if m.group is None}
                    raise UnknownNameError(f"criterion in every run behind {of[0].family}", by, names)
                value, best = max(judged, key=lambda pair: pair[0])
                one = best[0]
                picks.append(
                    Pick(
                        task=one.task,
                        attack=one.attack,
                        defence=one.family,
                        setting=one.setting,
                        value=value,
                        cells=most,
                        among=len(settings),
                    )
                )
            kept += [replace(e, setting=e.family) for e in best]
    return kept, picks


def _mean(runs: Sequence[Entry], name: str, group: str | None = None) -> float | None:
    """The mean of a metric, if every run has it."""
    found = [m.value for e in runs if (m := e.record.metric(name, group)) is not None]
    return float(np.mean(found)) if len(found) == len(runs) else None


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
    by_setting = {found[0].setting: found for found in _groups(alike, lambda e: e.setting)}
    ours = {e.record.cell.seed: e for e in by_setting.pop(base, [])}
    out = []
    for other, found in by_setting.items():
        pairs = [(ours[e.record.cell.seed], e) for e in found if e.record.cell.seed in ours]
        # An attack that knew the one and not the other is not the same attack.
        if not pairs or len({knew for pair in pairs for e in pair if (knew := e.knowledge)}) > 1:
            continue
        told, paired = difference([(a.record, b.record) for a, b in pairs], question, outcomes)
        first, second = (_mean([p[i] for p in pairs], question.metric, question.group) for i in (0, 1))
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
        estimates = [r.difference for r in found]
        mean = over_strata(estimates)
        out.append(
            replace(
                found[0],
                task=AVERAGED,
                difference=mean,
                values=(first, second),
                cells=len(found),
                paired="images" if by_images else "cells",
            )
        )
    return out
