"""The page of poison: triggered examples, success against budget beside the controls, where the changes fell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from redteam.core.record import Record
from redteam.report import page
from redteam.report.beside import of_metric
from redteam.report.words import class_name
from redteam.threats.poisoning.artifact import Poison
from redteam.threats.poisoning.report import curve, pictures, plots, words

__all__ = ["render"]

LAYOUT = page.Layout(
    template=Path(__file__).with_name("page.html.j2"), artifact=Poison, tables=("outcomes", "flips"),
    subject="Victim", headline=words.HEADLINE, definitions=words.DEFINITIONS, grouped=True,
)  # fmt: skip


def render(
    run: Path, siblings: Sequence[Record], dataset: Any | None, *, flags: Mapping[str, str] | None = None
) -> str:
    """The page of poison; see `redteam.report.page.Render`.

    Beside the run stand siblings with its task, goal and defences. Without the data set, the pictures and the
    names of the classes are left out.
    """
    record, artifact, tables = page.read(LAYOUT, run, dataset)
    classes = dataset.classes if dataset else None
    flips, beside = tables["flips"], curve.comparable(record, siblings)
    series = curve.curve(beside)
    images = int(np.count_nonzero(flips["image_changed"]))
    return page.render(
        LAYOUT, record, flags=flags, left_out=page.left_out(siblings, beside),
        title=f"{record.cell.attack.name} on {record.cell.task.dataset}",
        summary=words.summary(record, artifact, len(flips), images, classes, series),
        budget=artifact.budget,
        source=words.source_name(artifact.source_class, classes),
        target=class_name(artifact.target_class, classes),
        **_curves(record, series),
        examples=pictures.examples(artifact, tables["outcomes"], dataset) if dataset else None,
        amplified=pictures.AMPLIFIED,
        heat=pictures.heat_map(flips, classes),
        name=lambda c: class_name(c, classes),
    )  # fmt: skip


def _curves(record: Record, series: Sequence[curve.Series]) -> dict[str, Any]:
    base = of_metric(record, "base_pta")
    return {
        "pta_svg": plots.curve_svg(series, "pta", base),
        "lift_svg": plots.curve_svg(series, "trigger_lift", None),
        "curve_rows": [(s.label, p) for s in series for p in s.points],
        "curve_budgets": curve.budgets(series),
        "base": base,
    }
