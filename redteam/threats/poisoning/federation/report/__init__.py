"""One HTML page about malicious clients of a federation.

`render_federation` is a pure function of the run's files and the records beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from redteam.core.errors import ArtifactError, RecordError
from redteam.core.record import Record
from redteam.core.stats import Estimate
from redteam.core.store import read_run
from redteam.report import page, words
from redteam.threats.poisoning import report as shared
from redteam.threats.poisoning.federation.artifact import Clients
from redteam.threats.poisoning.federation.report import plots, series
from redteam.threats.poisoning.federation.report import words as federation_words

TABLES = ("outcomes", "rounds", "clients", "notes")
_EVENTS = 60


@dataclass(frozen=True)
class _Step:
    """This run and its reference at one snapshot."""

    round: int
    asr: Estimate | None
    base_asr: Estimate
    cta: Estimate | None
    base_cta: Estimate


def render_federation(
    run: Path,
    siblings: Sequence[Record],
    classes: Sequence[str] | None = None,
    flags: Mapping[str, str] | None = None,
) -> str:
    """The page of the run in folder `run`.

    siblings: other records of the store; those with the run's task and attack, whatever their defences and number
    of malicious clients, stand beside it. classes: names of the data set's classes; None: numbers alone. flags: the
    explanation of each flag id.

    Raises:
        RecordError: the record does not validate, or its run was not scored.
        ArtifactError: a file is missing or was changed, or the run attacked no federation.
    """
    record, artifact, tables = _read(run)
    beside, controls = series.comparable(record, siblings), series.controls(record, siblings)
    lines, points = series.lines(record, beside), series.points(record, beside)
    environment = page.environment(Path(__file__).parent)
    environment.globals |= {"bounds": words.bounds, "count": words.count, "plain": words.plain,
                            "glyph": plots.glyph, "colour": plots.colour}  # fmt: skip
    html = environment.get_template("federation.html.j2").render(
        **_headline(record, artifact, classes),
        summary=federation_words.summary(record, artifact, lines, points, controls, classes),
        **_curves(record, tables["rounds"], lines),
        **_trade(record, tables["rounds"], points),
        **_filter(record, tables["clients"]),
        **_notes(tables["notes"]),
        **_provenance(record, artifact, flags or {}),
        left_out=len({s.id for s in siblings} - {r.id for r in [*beside, *controls]}),
    )
    return html + "\n"


def _read(run: Path) -> tuple[Record, Clients, dict[str, pd.DataFrame]]:
    record, artifact, tables = read_run(run)
    if not isinstance(artifact, Clients):
        raise ArtifactError(f"expected a run that attacked a federation, got one that made {artifact.kind}")
    if record.status != "ok":
        raise RecordError(
            f"the run in {run} has status {record.status}: a report needs a run that was scored"
        )
    if missing := set(TABLES) - set(tables):
        raise ArtifactError(f"{run} lacks the evidence {', '.join(sorted(missing))}; run the attack again")
    return record, artifact, tables


def _headline(record: Record, artifact: Clients, classes: Sequence[str] | None) -> dict[str, Any]:
    return {
        "record": record,
        "artifact": artifact,
        "behind": series.behind(record),
        "task": record.cell.task.config,
        "source": federation_words.source_name(artifact, classes),
        "target": words.class_name(artifact.target_class, classes),
        "headline": [m for n in federation_words.HEADLINE if (m := record.metric(n)) is not None],
        "definitions": federation_words.DEFINITIONS,
        "settings": federation_words.settings,
    }


def _curves(record: Record, rounds: pd.DataFrame, lines: Sequence[series.Line]) -> dict[str, Any]:
    base, drift = series.reference(rounds), series.drift_steps(record.cell.task.config)
    own = next(line for line in lines if line.own)
    asr, cta = dict(own.asr), dict(own.cta)
    steps = [
        _Step(number, asr.get(number), base_asr, cta.get(number), base_cta)
        for (number, base_asr), (_, base_cta) in zip(base["asr"], base["cta"], strict=True)
    ]
    others = [line for line in lines if not line.own]
    return {
        "lines": lines,
        "others": others,
        "drift": drift,
        "at_a_round": federation_words.AT_A_ROUND,
        "steps": steps,
        "rounds_svgs": [(m, plots.rounds_svg(lines, m, base[m], drift)) for m in ("asr", "cta")],
        "by_round": [
            (step.round, [(dict(line.asr).get(step.round), dict(line.cta).get(step.round)) for line in others])
            for step in steps
        ],
    }  # fmt: skip


def _trade(record: Record, rounds: pd.DataFrame, points: Sequence[series.Point]) -> dict[str, Any]:
    base = series.reference(rounds)
    asr, cta = base["asr"][-1][1], base["cta"][-1][1]
    return {
        "points": points,
        "trade": series.TRADE,
        "trade_svg": plots.trade_svg(points, record.id, asr, cta),
        "base_asr": asr,
        "base_cta": cta,
    }


def _filter(record: Record, clients: pd.DataFrame) -> dict[str, Any]:
    spans, config = series.judged(clients), record.cell.task.config
    svg = plots.filter_svg(spans, config["rounds"], series.drift_steps(config)) if spans else None
    return {"spans": spans, "filter_svg": svg}


def _notes(table: pd.DataFrame) -> dict[str, Any]:
    events, often = series.notes(table)
    return {
        "events": events[:_EVENTS],
        "more_events": events[_EVENTS:],
        "often": often,
        "several": table["victim"].nunique() > 1,
        "meaning": federation_words.NOTES,
        "value": federation_words.note_value,
    }


def _provenance(record: Record, artifact: Clients, flags: Mapping[str, str]) -> dict[str, Any]:
    cell, found = record.cell, shared._provenance(record, flags)
    configs = [("Federation", {**cell.task.config, "model": cell.task.model}), ("Attack", cell.attack.config)]
    configs += [(f"Defence {d.name}", d.config) for d in cell.defenses]
    configs += [("How malicious clients act", dict(artifact.conduct))] if artifact.conduct else []
    return {**found, "configs": [(title, words.settings(config)) for title, config in configs]}
