"""The page of suffixes against moderation: evasion beside both of its controls, and every text with its verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from redteam.core.record import Metric, Record
from redteam.core.stats import Estimate
from redteam.report import figures, page
from redteam.report.beside import by_setting, comparable, of_metric, pooled, rows, same_question
from redteam.threats.moderation.artifact import Suffixes
from redteam.threats.moderation.report import texts, words

__all__ = ["render"]

LAYOUT = page.Layout(
    template=Path(__file__).with_name("page.html.j2"), artifact=Suffixes, tables=("outcomes",),
    subject="Classifier under attack", headline=words.HEADLINE, definitions=words.DEFINITIONS, victims=False,
    notes="What the search says of itself",
)  # fmt: skip
_FIRST_SHOWN = 20
_ARMS = {"original": "base_evasion", "random": "random_evasion", "suffix": "evasion"}


def render(
    run: Path, siblings: Sequence[Record], dataset: Any | None, *, flags: Mapping[str, str] | None = None
) -> str:
    """The page of suffixes against moderation; see `redteam.report.page.Render`.

    Beside the run stand siblings with its task and defences. The data set is not shown.
    """
    record, artifact, tables = page.read(LAYOUT, run, dataset)
    beside, outcomes = comparable(record, siblings, same_question), tables["outcomes"]
    settings, found = by_setting(beside), texts.rows(artifact, outcomes)
    kinds, endings = texts.endings(outcomes)
    return page.render(
        LAYOUT, record, flags=flags, left_out=page.left_out(siblings, beside), notes=artifact.notes,
        title=f"{record.cell.attack.name} on {record.cell.task.dataset}",
        summary=words.summary(record, artifact, _controls(record, settings)),
        texts=len(found),
        repeats=int(outcomes["sample"].nunique()),
        arms=words.ARMS,
        columns=words.COLUMNS,
        arms_svg=_arms_svg(record),
        beside=rows(settings, words.COLUMNS),
        splits=_splits(record),
        kinds=[f"#{kind}" for kind in kinds],
        endings=endings,
        cost=texts.cost(artifact),
        queries=int(artifact.queries.sum()),
        first_rows=found[:_FIRST_SHOWN],
        more_rows=found[_FIRST_SHOWN:],
    )  # fmt: skip


def _controls(record: Record, settings: Sequence[tuple[str, list[Record]]]) -> list[tuple[str, Estimate]]:
    return [
        (label, e)
        for label, found in settings
        if found[0].role == "control" and record not in found and (e := pooled(found, "evasion")) is not None
    ]


def _arms_svg(record: Record) -> Any:
    """The shares that pass in each arm; of a universal suffix also on the texts that were held out."""
    found = [(words.ARMS[arm], of_metric(record, name)) for arm, name in _ARMS.items()]
    held = [
        (f"{words.ARMS[arm]}, held out", record.metric(name, "split=validation"))
        for arm, name in _ARMS.items()
    ]
    bars = [(label, e) for label, e in [*found, *held] if e is not None]
    return figures.share_bars("arms", bars, "share of the texts that pass")


def _splits(record: Record) -> list[tuple[str, list[Metric | None]]]:
    """(split, its metrics in the order of the columns)."""
    known = {m.group for m in record.metrics}
    return [
        (label, [record.metric(n, g) for n in words.COLUMNS])
        for g, label in words.SPLITS.items()
        if g in known
    ]
