"""The page of malicious clients: success over the rounds and behind other defences, who was removed, what was noted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from redteam.core.record import Record
from redteam.report import page
from redteam.report.words import class_name
from redteam.threats.poisoning.federation.artifact import Clients
from redteam.threats.poisoning.federation.report import plots, series, words
from redteam.threats.poisoning.report.words import source_name

__all__ = ["render"]

LAYOUT = page.Layout(
    template=Path(__file__).with_name("page.html.j2"), artifact=Clients,
    tables=("outcomes", "rounds", "clients", "notes"), subject="Federation", headline=words.HEADLINE,
    definitions=words.DEFINITIONS, notes="How malicious clients act",
)  # fmt: skip
_EVENTS = 60


def render(
    run: Path, siblings: Sequence[Record], dataset: Any | None, *, flags: Mapping[str, str] | None = None
) -> str:
    """The page of malicious clients; see `redteam.report.page.Render`.

    Beside the run stand siblings with its task and attack, whatever their defences and number of malicious
    clients. Of the data set only the names of its classes are shown.
    """
    record, artifact, tables = page.read(LAYOUT, run, dataset)
    classes = dataset.classes if dataset else None
    beside, controls = series.comparable(record, siblings), series.controls(record, siblings)
    lines, points = series.lines(record, beside), series.points(record, beside)
    return page.render(
        LAYOUT, record, flags=flags, left_out=page.left_out(siblings, beside, controls), notes=artifact.conduct,
        title=f"{record.cell.attack.name} on a federation of {record.cell.task.dataset}",
        summary=words.summary(record, artifact, lines, points, controls, classes),
        malicious=len(artifact.ids),
        source=source_name(artifact.source_class, classes),
        target=class_name(artifact.target_class, classes),
        **_curves(record, tables["rounds"], lines),
        **_trade(record, tables["rounds"], points),
        **_filter(record, tables["clients"]),
        **_notes(tables["notes"]),
    )  # fmt: skip


def _curves(record: Record, rounds: pd.DataFrame, lines: Sequence[series.Line]) -> dict[str, Any]:
    base, drift = series.reference(rounds), series.drift_steps(record.cell.task.config)
    own = next(line for line in lines if line.own)
    pairs = [(dict(getattr(own, m)), dict(base[m])) for m in ("asr", "cta")]
    return {
        "lines": lines,
        "others": [line for line in lines if not line.own],
        "drift": drift,
        "at_a_round": words.AT_A_ROUND,
        "steps": [(n, [e for mine, reference in pairs for e in (mine.get(n), reference[n])]) for n, _ in base["asr"]],
        "rounds_svgs": [(m, plots.rounds_svg(lines, m, base[m], drift)) for m in ("asr", "cta")],
    }  # fmt: skip


def _trade(record: Record, rounds: pd.DataFrame, points: Sequence[series.Point]) -> dict[str, Any]:
    base = series.reference(rounds)
    asr, cta = base["asr"][-1][1], base["cta"][-1][1]
    svg = plots.trade_svg(points, record.id, asr, cta)
    return {"points": points, "trade": series.TRADE, "trade_svg": svg, "base_asr": asr, "base_cta": cta}


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
        "meaning": words.NOTES,
        "value": words.note_value,
    }
