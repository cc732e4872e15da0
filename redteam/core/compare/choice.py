"""Choosing one setting of each defence by a criterion, as a user without the test images would."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from redteam.core.compare.names import Entry
from redteam.core.errors import UnknownNameError
from redteam.core.threat import pairing_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """A setting that was chosen, the mean of the criterion over its cells, and out of how many settings.

    target_labels: whether the criterion used labels of the target domain, which nobody who adapts without them has.
    """

    task: str
    attack: str
    defence: str
    setting: str
    value: float
    cells: int
    among: int
    target_labels: bool


def grouped(runs: Iterable[Entry], key: Callable[[Entry], str]) -> list[list[Entry]]:
    """The runs by a key, in the order in which keys come up."""
    groups: dict[str, list[Entry]] = defaultdict(list)
    for e in runs:
        groups[key(e)].append(e)
    return list(groups.values())


def mean(runs: Sequence[Entry], name: str, group: str | None = None) -> float | None:
    """The mean of a metric, if every run has it."""
    found = [m.value for e in runs if (m := e.record.metric(name, group)) is not None]
    return float(np.mean(found)) if len(found) == len(runs) else None


def chosen(runs: Sequence[Entry], by: str) -> tuple[list[Entry], list[Pick]]:
    """Among rivals, the runs of each defence's best setting by the mean of a criterion over seeds.

    Of a defence's settings, only those that ran with the most seeds compete. The first of equals is taken.

    Raises:
        UnknownNameError: a defence has several settings, and no run of it has the criterion.
    """
    kept: list[Entry] = []
    picks: list[Pick] = []
    for rivals in grouped(runs, lambda e: e.rivals):
        for of in grouped(rivals, lambda e: e.family):
            settings = grouped(of, lambda e: e.setting)
            best = settings[0]
            if len(settings) > 1:
                pick, best = _best(settings, by)
                picks.append(pick)
            kept += [replace(e, setting=e.family) for e in best]
    return kept, picks


def _best(settings: Sequence[list[Entry]], by: str) -> tuple[Pick, list[Entry]]:
    most = max(map(len, settings))
    judged = [(v, s) for s in settings if len(s) == most and (v := mean(s, by)) is not None]
    if not judged:
        names = {m.name for s in settings for e in s for m in e.record.metrics if m.group is None}
        raise UnknownNameError(f"criterion in every run behind {settings[0][0].family}", by, names)
    value, best = max(judged, key=lambda pair: pair[0])
    one = best[0]
    pairing = pairing_of(one.record.cell.threat, one.record.cell.task.target)
    free = pairing.label_free if pairing is not None else None
    pick = Pick(
        task=one.task, attack=one.attack, defence=one.family, setting=one.setting, value=value, cells=most,
        among=len(settings), target_labels=free is not None and by not in free,
    )  # fmt: skip
    return pick, best
