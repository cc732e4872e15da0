"""One HTML page about a run: what was attacked, what came out, and the evidence, with nothing to load.

`render` is a pure function of the run's files, the records beside it and the data set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from redteam.core.errors import ArtifactError, DataError, RecordError
from redteam.core.record import Record
from redteam.core.store import read_run
from redteam.data.nouns import ImageDataset
from redteam.report import curve, page, plots, words
from redteam.threats.poisoning.artifact import Poison
from redteam.threats.poisoning.report import pictures

__all__ = ["render"]


@dataclass(frozen=True)
class _Run:
    """A run that was read and checked. classes: None where the data set was not given."""

    record: Record
    artifact: Poison
    outcomes: pd.DataFrame
    flips: pd.DataFrame
    dataset: ImageDataset | None

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self.dataset.classes if self.dataset else None


def render(
    run: Path,
    siblings: Sequence[Record],
    dataset: ImageDataset | None,
    *,
    flags: Mapping[str, str] | None = None,
) -> str:
    """The page of the run in folder `run`.

    siblings: other records of the store; those with the run's task, goal and defences make the curve.
    dataset: None leaves out the images and the class names. flags: the explanation of each flag id.

    Raises:
        RecordError: the record does not validate, or its run was not scored.
        ArtifactError: a file is missing, or is not the one the record names.
        DataError: `dataset` is not the one that was attacked.
    """
    found = _read(run, dataset)
    beside = curve.comparable(found.record, siblings)
    environment = page.environment(Path(__file__).parent)
    others = {s.id for s in siblings} - {r.id for r in beside}
    html = environment.get_template("poisoning.html.j2").render(
        **_headline(found, beside),
        **_curves(found.record, beside),
        **_provenance(found.record, flags or {}),
        examples=pictures.examples(found.artifact, found.outcomes, dataset) if dataset else None,
        amplified=pictures.AMPLIFIED,
        heat=pictures.heat_map(found.flips, found.classes),
        name=lambda c: words.class_name(c, found.classes),
        left_out=len(others),
    )
    return html + "\n"


def _read(run: Path, dataset: ImageDataset | None) -> _Run:
    record, artifact, tables = read_run(run)
    if not isinstance(artifact, Poison):
        raise ArtifactError(f"{run} holds {artifact.kind}; this page is about poison")
    if record.status != "ok":
        raise RecordError(
            f"the run in {run} has status {record.status}: a report needs a run that was scored"
        )
    if missing := {"outcomes", "flips"} - set(tables):
        raise ArtifactError(f"{run} lacks the evidence {', '.join(sorted(missing))}; run the attack again")
    if dataset is not None and dataset.digest != record.cell.task.digest:
        raise DataError(
            f"'{dataset.name}' is not the data of this run: expected content digest "
            f"{record.cell.task.digest[:16]}..., got {dataset.digest[:16]}...; give the right one, or none"
        )
    return _Run(record, artifact, tables["outcomes"], tables["flips"], dataset)


def _headline(run: _Run, beside: Sequence[Record]) -> dict[str, Any]:
    record, artifact = run.record, run.artifact
    changed_images = int(np.count_nonzero(run.flips["image_changed"]))
    series = curve.curve(beside)
    return {
        "record": record,
        "artifact": artifact,
        "headline": [m for n in words.HEADLINE if (m := record.metric(n)) is not None],
        "definitions": words.DEFINITIONS,
        "bounds": words.bounds,
        "count": words.count,
        "summary": words.summary(record, artifact, len(run.flips), changed_images, run.classes, series),
        "source": words.source_name(artifact, run.classes),
        "target": words.class_name(artifact.target_class, run.classes),
    }


def _curves(record: Record, beside: Sequence[Record]) -> dict[str, Any]:
    series = curve.curve(beside)
    base = curve.of_metric(record, "base_pta")
    return {
        "pta_svg": plots.curve_svg(series, "pta", "pta", base),
        "lift_svg": plots.curve_svg(series, "lift", "trigger_lift", None),
        "curve_rows": curve.rows(series),
        "curve_budgets": curve.budgets(series),
        "base": base,
    }


def _provenance(record: Record, flags: Mapping[str, str]) -> dict[str, Any]:
    cell, cost, env = record.cell, record.cost, record.environment
    longest = max([*cost.stages.values(), 1e-9])
    configs = [("Victim", {**cell.task.config, "model": cell.task.model}), ("Attack", cell.attack.config)]
    configs += [(f"Defence {d.name}", d.config) for d in cell.defenses]
    commit = f"{env.git_commit or 'not recorded'}" + (" with uncommitted changes" if env.dirty else "")
    return {
        "published": [(p, record.metric(p.metric)) for p in record.published],
        "flags": [(f, flags.get(f)) for f in record.flags],
        "stages": [(s, seconds, seconds / longest) for s, seconds in cost.stages.items()],
        "configs": [(title, words.settings(config)) for title, config in configs],
        "environment": [
            ("suite", env.suite), ("commit", commit), ("python", env.python), ("system", env.os),
            ("cpu", env.cpu), ("device", env.device), *sorted(env.packages.items()),
        ],
        "command": words.command(record),
    }  # fmt: skip
