"""One HTML page about images moved so that a classifier misreads them.

`render_evasion` is a pure function of the run's files, the records beside it and the data set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from redteam.core.errors import ArtifactError, DataError, RecordError
from redteam.core.record import Record
from redteam.core.store import read_run
from redteam.data.nouns import ImageSet
from redteam.report import page, words
from redteam.report.curve import of_metric
from redteam.threats.evasion.artifact import Perturbed
from redteam.threats.evasion.domain import DomainDataset
from redteam.threats.evasion.report import pictures, plots, series
from redteam.threats.evasion.report import words as evasion_words
from redteam.threats.poisoning import report as shared
from redteam.threats.poisoning.federation.report.plots import colour, glyph

TABLES = ("outcomes", "probes")
# What a cell pins of a model of the user's own; no setting.
_PINNED = "model_sha256"


@dataclass(frozen=True)
class _Run:
    """A run that was read and checked. images: None where the data set was not given."""

    record: Record
    artifact: Perturbed
    tables: dict[str, pd.DataFrame]
    images: ImageSet | None


def render_evasion(
    run: Path,
    siblings: Sequence[Record],
    dataset: DomainDataset | None = None,
    flags: Mapping[str, str] | None = None,
) -> str:
    """The page of the run in folder `run`.

    siblings: other records of the store; those with the run's task and attack, whatever their defences, stand beside
    it, and so do other attacks on the very same networks. dataset: None leaves out the images and the class names.
    flags: the explanation of each flag id, in place of ours.

    Raises:
        RecordError: the record does not validate, or its run was not scored.
        ArtifactError: a file is missing or was changed, or the run moved no images.
        DataError: `dataset` is not the one that was attacked.
    """
    found = _read(run, dataset)
    record, beside = found.record, series.comparable(found.record, siblings)
    others = series.other_attacks(record, siblings)
    environment = page.environment(Path(__file__).parent)
    environment.globals |= {"bounds": words.bounds, "count": words.count, "glyph": glyph, "colour": colour,
                            "counts": evasion_words.COUNTS}  # fmt: skip
    html = environment.get_template("evasion.html.j2").render(
        **_headline(found),
        **_compared(found, beside, others),
        **_training(found),
        **_sanity(found),
        **_pictures(found),
        **_provenance(record, found.artifact, flags or {}),
        left_out=len({s.id for s in siblings} - {r.id for r in [*beside, *others]}),
    )
    return html + "\n"


def _read(run: Path, dataset: DomainDataset | None) -> _Run:
    record, artifact, tables = read_run(run)
    if not isinstance(artifact, Perturbed):
        raise ArtifactError(f"expected a run that moved images, got one that made {artifact.kind}")
    if record.status != "ok":
        raise RecordError(
            f"the run in {run} has status {record.status}: a report needs a run that was scored"
        )
    if missing := set(TABLES) - set(tables):
        raise ArtifactError(f"{run} lacks the evidence {', '.join(sorted(missing))}; run the attack again")
    return _Run(record, artifact, tables, examples_of(record, dataset) if dataset is not None else None)


def examples_of(record: Record, dataset: DomainDataset) -> ImageSet:
    """The test images that the run of `record` was about, as its networks see them.

    Raises:
        DataError: `dataset` is not the one that was attacked.
    """
    from redteam.core.config import build, knobs
    from redteam.core.context import Context
    from redteam.core.device import Device
    from redteam.core.seeding import SeedPath
    from redteam.threats.evasion.adapt.config import DomainConfig
    from redteam.threats.evasion.target import make

    task = record.cell.task
    if dataset.digest != task.digest:
        raise DataError(
            f"'{dataset.name}' is not the data of this run: expected content digest {task.digest[:16]}..., got "
            f"{dataset.digest[:16]}...; give the right one, or none"
        )
    settings = {k: v for k, v in task.config.items() if k in knobs(DomainConfig)}
    ctx = Context(Device("cpu"), SeedPath(record.cell.seed))
    return make(dataset, build(DomainConfig, {**settings, "model": task.model}), ctx).examples(ctx)


# ---------------------------------------------------------------- parts of the page


def _headline(run: _Run) -> dict[str, Any]:
    record = run.record
    return {
        "record": record,
        "artifact": run.artifact,
        "behind": evasion_words.behind(record),
        "headline": [m for n in evasion_words.HEADLINE if (m := record.metric(n)) is not None],
        "definitions": evasion_words.DEFINITIONS,
    }


def _compared(run: _Run, beside: Sequence[Record], others: Sequence[Record]) -> dict[str, Any]:
    record, artifact, outcomes = run.record, run.artifact, run.tables["outcomes"]
    at = series.radii(record, artifact, outcomes)
    lines, rows = series.lines(record, beside), series.rows(record, beside)
    attacks = series.attacks(record, others)
    stages = series.survivors(record, artifact)
    classes = run.tables["probes"].query("name == 'classes'")["value"].max()
    return {
        "summary": evasion_words.summary(record, artifact, run.tables, at, rows, attacks),
        "at": at,
        "lines": lines,
        "radii": sorted({eps for line in lines for eps, _ in line.points}),
        "chance": 1 / float(classes),
        "stretched": plots.stretched(lines),
        "curve_svg": plots.curve_svg(lines, artifact.norm, artifact.main, 1 / float(classes)),
        "rows": rows,
        "trade": series.TRADE,
        "attacks": attacks,
        "measured": evasion_words.measured,
        "ensemble": stages,
        "accuracy": of_metric(record, "accuracy"),
        "survivors_svg": plots.survivors_svg(of_metric(record, "accuracy"), stages),
    }


def _training(run: _Run) -> dict[str, Any]:
    history = series.validations(run.tables.get("history"))
    return {
        "selected": series.selected(run.record, run.tables.get("selection")),
        "selectors": evasion_words.SELECTORS,
        "history": history,
        "criteria": list(dict.fromkeys(c for v in history for c in v.values)),
        "criterion_means": evasion_words.CRITERIA,
        "history_svg": plots.history_svg(history),
    }


def _sanity(run: _Run) -> dict[str, Any]:
    rows = []
    for name, found in series.probed(run.tables["probes"]):
        meaning, flag = evasion_words.PROBES.get(name, ("", None))
        rows.append((name, meaning, flag, [evasion_words.probe_value(name, v, n) for v, n in found]))
    return {"probed": rows, "checks": evasion_words.checks(run.artifact, run.tables["outcomes"])}


def _pictures(run: _Run) -> dict[str, Any]:
    shown = (
        pictures.examples(run.artifact, run.tables["outcomes"], run.images)
        if run.images is not None
        else None
    )
    classes = run.images.classes if run.images is not None else ()

    def name(number: int) -> str:
        # A network may have more logits than the data have classes.
        return words.class_name(number, classes if number < len(classes) else None)

    return {"shown": shown, "name": name}


def _provenance(record: Record, artifact: Perturbed, flags: Mapping[str, str]) -> dict[str, Any]:
    cell = record.cell
    found = shared._provenance(record, evasion_words.flag_meanings(record, flags))
    configs = [("Classifier", {**cell.task.config, "model": cell.task.model}), ("Attack", cell.attack.config)]
    configs += [(f"Defence {d.name}", d.config) for d in cell.defenses]
    configs += [("What the attack says of itself", dict(artifact.notes))] if artifact.notes else []
    settings = {k: v for k, v in cell.task.config.items() if k != _PINNED}
    bare = cell.model_copy(update={"task": cell.task.model_copy(update={"config": settings})})
    return {
        **found,
        "configs": [(title, words.settings(config)) for title, config in configs],
        "command": words.command(record.model_copy(update={"cell": bare})),
    }
