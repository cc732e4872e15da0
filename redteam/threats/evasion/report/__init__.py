"""The page of moved images: accuracy against the radius, what each attack broke, which state was taken, pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from redteam.core.record import Record
from redteam.data.nouns import ImageSet
from redteam.report import page
from redteam.report.beside import of_metric
from redteam.report.words import class_name
from redteam.threats.evasion.artifact import Perturbed
from redteam.threats.evasion.domain import DomainDataset
from redteam.threats.evasion.report import pictures, plots, series, words

__all__ = ["render"]

LAYOUT = page.Layout(
    template=Path(__file__).with_name("page.html.j2"), artifact=Perturbed, tables=("outcomes", "probes"),
    subject="Classifier", headline=words.HEADLINE, definitions=words.DEFINITIONS,
    pinned=("model_sha256",),  # of a model of the user's own
)  # fmt: skip


def render(
    run: Path, siblings: Sequence[Record], dataset: Any | None, *, flags: Mapping[str, str] | None = None
) -> str:
    """The page of moved images; see `redteam.report.page.Render`.

    Beside the run stand siblings with its task and attack, whatever their defences, and other attacks on the
    very same networks. Flags have explanations of our own.
    """
    record, artifact, tables = page.read(LAYOUT, run, dataset)
    beside, others = series.comparable(record, siblings), series.other_attacks(record, siblings)
    at = series.radii(record, artifact, tables["outcomes"])
    rows, attacks = series.rows(record, beside), series.attacks(record, others)
    return page.render(
        LAYOUT, record, notes=artifact.notes, flags=words.flag_meanings(record, flags or {}),
        left_out=page.left_out(siblings, beside, others),
        title=f"{record.cell.attack.name} on {record.cell.task.dataset}",
        summary=words.summary(record, artifact, tables, at, rows, attacks),
        artifact=artifact,
        counts=words.COUNTS,
        at=at,
        rows=rows,
        trade=series.TRADE,
        attacks=attacks,
        measured=words.measured,
        **_curve(artifact, tables, series.lines(record, beside)),
        **_ensemble(record, artifact),
        **_training(record, tables),
        **_sanity(artifact, tables),
        **_pictures(artifact, tables, examples_of(record, dataset) if dataset is not None else None),
    )  # fmt: skip


def examples_of(record: Record, dataset: DomainDataset) -> ImageSet:
    """The test images that the run of `record` was about, as its networks see them."""
    from redteam.core.config import build, knobs
    from redteam.core.context import Context
    from redteam.core.device import Device
    from redteam.core.seeding import SeedPath
    from redteam.threats.evasion.adapt.config import DomainConfig
    from redteam.threats.evasion.target import make

    task = record.cell.task
    settings = {k: v for k, v in task.config.items() if k in knobs(DomainConfig)}
    ctx = Context(Device("cpu"), SeedPath(record.cell.seed))
    return make(dataset, build(DomainConfig, {**settings, "model": task.model}), ctx).examples(ctx)


# ---------------------------------------------------------------- parts of the page


def _curve(
    artifact: Perturbed, tables: Mapping[str, pd.DataFrame], lines: Sequence[series.Line]
) -> dict[str, Any]:
    chance = 1 / float(tables["probes"].query("name == 'classes'")["value"].max())
    return {
        "lines": lines,
        "radii": sorted({eps for line in lines for eps, _ in line.points}),
        "chance": chance,
        "stretched": plots.stretched(lines),
        "curve_svg": plots.curve_svg(lines, artifact.norm, artifact.main, chance),
    }


def _ensemble(record: Record, artifact: Perturbed) -> dict[str, Any]:
    stages, accuracy = series.survivors(record, artifact), of_metric(record, "accuracy")
    return {"ensemble": stages, "accuracy": accuracy, "survivors_svg": plots.survivors_svg(accuracy, stages)}


def _training(record: Record, tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    history = series.validations(tables.get("history"))
    return {
        "selected": series.selected(record, tables.get("selection")),
        "selectors": words.SELECTORS,
        "history": history,
        "criteria": list(dict.fromkeys(c for v in history for c in v.values)),
        "criterion_means": words.CRITERIA,
        "history_svg": plots.history_svg(history),
    }


def _sanity(artifact: Perturbed, tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    rows = []
    for name, found in series.probed(tables["probes"]):
        meaning, flag = words.PROBES.get(name, ("", None))
        rows.append((meaning or name, flag, [words.probe_value(name, v, n) for v, n in found]))
    return {"probed": rows, "checks": words.checks(artifact, tables["outcomes"])}


def _pictures(
    artifact: Perturbed, tables: Mapping[str, pd.DataFrame], images: ImageSet | None
) -> dict[str, Any]:
    classes = images.classes if images is not None else ()

    def name(number: int) -> str:
        # A network may have more logits than the data have classes.
        return class_name(number, classes if number < len(classes) else None)

    found = pictures.examples(artifact, tables["outcomes"], images) if images is not None else None
    return {"shown": found, "name": name}
