"""One HTML page about a run of adversarial strings.

`render_strings` is a pure function of the run's files, the records beside it and their files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from redteam.core.errors import ArtifactError, RecordError
from redteam.core.record import Metric, Record
from redteam.core.store import read_run
from redteam.report import curve, page, words
from redteam.threats.poisoning import report as shared
from redteam.threats.strings.artifact import Strings
from redteam.threats.strings.metrics import CLASSES, class_of, judged
from redteam.threats.strings.report import plots as string_plots
from redteam.threats.strings.report import series as string_series
from redteam.threats.strings.report import words as string_words

_FIRST_SHOWN = 20
_ARMS = {
    "attack": "adversarial prompts, each repeat", "initial": "initial prompts",
    "none": "no adversarial string, undefended",
}  # fmt: skip
_ORDER = ("length<=8", "length 9-16", "length>16")


@dataclass(frozen=True)
class _Row:
    """One string in the table. answer: the part that agrees with the target, and the rest."""

    id: str
    length: int
    target: str
    prompt: str
    answer: tuple[str, str]
    finish: str
    found_at: int | None
    queries: int
    search_finish: str
    exact: int
    repeats: int
    initial: bool


def render_strings(run: Path, siblings: Sequence[Record], flags: Mapping[str, str] | None = None) -> str:
    """The page of the run in folder `run`.

    siblings: other records of the store; those with the run's task and defences stand beside it, and
    their searches are drawn if their folders lie beside `run`. flags: the explanation of each flag id.

    Raises:
        RecordError: the record does not validate, or its run was not scored.
        ArtifactError: a file is missing or was changed, or the run made no strings.
    """
    record, artifact, tables = _read(run)
    beside = curve.comparable(record, siblings)
    found = string_series.series(run, beside)
    environment = page.environment(Path(__file__).parent)
    environment.filters |= {
        "visible": string_words.visible,
    }  # fmt: skip
    outcomes = judged(tables["outcomes"])
    rows = _rows(artifact, outcomes)
    html = environment.get_template("strings.html.j2").render(
        **_headline(record, artifact, found),
        **_evidence(artifact, outcomes, tables["trace"]),
        **_provenance(record, artifact, flags or {}),
        success_svg=string_plots.success_svg(found, record.id, curve.of_metric(record, "initial_success")),
        spent_svgs=_spent_curves(run, record, beside, artifact),
        series=found,
        first_rows=rows[:_FIRST_SHOWN],
        more_rows=rows[_FIRST_SHOWN:],
        left_out=len({s.id for s in siblings} - {r.id for r in beside}),
    )
    return html + "\n"


def _spent_curves(
    run: Path, record: Record, beside: Sequence[Record], artifact: Strings
) -> list[tuple[str, Any]]:
    """The same curve against tokens, and against dollars where the search cost any."""
    initial = curve.of_metric(record, "initial_success")
    units = ["tokens", *(["usd"] if artifact.usd.max() > 0 else [])] if artifact.tokens.max() > 0 else []
    drawn = [
        (u, string_plots.success_svg(string_series.series(run, beside, u), record.id, initial, u))
        for u in units
    ]
    return [(unit, svg) for unit, svg in drawn if svg is not None]


def _read(run: Path) -> tuple[Record, Strings, dict[str, pd.DataFrame]]:
    record, artifact, tables = read_run(run)
    if not isinstance(artifact, Strings):
        raise ArtifactError(
            f"expected a run that made adversarial strings, got one that made {artifact.kind}"
        )
    if record.status != "ok":
        raise RecordError(
            f"the run in {run} has status {record.status}: a report needs a run that was scored"
        )
    if missing := {"outcomes", "search", "trace"} - set(tables):
        raise ArtifactError(f"{run} lacks the evidence {', '.join(sorted(missing))}; run the attack again")
    return record, artifact, tables


def _headline(record: Record, artifact: Strings, found: Sequence[string_series.Series]) -> dict[str, Any]:
    return {
        "record": record,
        "artifact": artifact,
        "headline": [m for n in string_words.HEADLINE if (m := record.metric(n)) is not None],
        "definitions": string_words.DEFINITIONS,
        "pooled": string_series.POOLED,
        "bounds": words.bounds,
        "count": words.count,
        "summary": string_words.summary(record, artifact, found),
        "groups": _groups(record),
        "grouped": string_words.GROUPED,
    }


def _groups(record: Record) -> list[tuple[str, list[Metric | None]]]:
    """(group, its metrics in the order of `GROUPED`), lengths first."""
    names = {m.group for m in record.metrics if m.group is not None}
    ordered = sorted(names, key=lambda g: (_ORDER.index(g) if g in _ORDER else len(_ORDER), g))
    return [(g, [record.metric(n, g) for n in string_words.GROUPED]) for g in ordered]


def _evidence(artifact: Strings, outcomes: pd.DataFrame, trace: pd.DataFrame) -> dict[str, Any]:
    return {
        "template": str(outcomes["template"].iloc[0]),
        "repeats": int(outcomes.loc[outcomes["arm"] == "attack", "sample"].nunique()),
        "classes": ("exact", "other answer", *CLASSES),
        "endings": _endings(outcomes),
        "trace": _trace(artifact, trace),
    }


def _endings(outcomes: pd.DataFrame) -> list[tuple[str, list[int]]]:
    """(arm, completions that ended in each class), in the order of `classes`."""
    out = []
    for arm, label in _ARMS.items():
        rows = outcomes[outcomes["arm"] == arm]
        ended = [
            "exact" if exact else class_of(text, target, finish)
            for exact, text, target, finish in zip(
                *(rows[c].tolist() for c in ("exact", "text", "target", "finish")), strict=True
            )
        ]
        out.append((label, [ended.count(name) for name in ("exact", "answered", *CLASSES)]))
    return out


def _trace(artifact: Strings, trace: pd.DataFrame) -> dict[str, Any] | None:
    """The search with the most improvements, the first of several."""
    if trace.empty:
        return None
    row = int(np.bincount(trace["string"].to_numpy(np.int64)).argmax())
    mine = trace[trace["string"] == row].sort_values("queries", kind="stable")
    found_at = int(artifact.queries_at[row]) if artifact.found[row] else None
    points = list(zip(mine["queries"].tolist(), mine["loss"].tolist(), strict=True))
    return {
        "id": artifact.ids[row], "target": artifact.targets[row], "points": points, "found_at": found_at,
        "svg": string_plots.trace_svg([q for q, _ in points], [x for _, x in points], found_at),
    }  # fmt: skip


def _rows(artifact: Strings, outcomes: pd.DataFrame) -> list[_Row]:
    ordered = outcomes.sort_values("sample", kind="stable")
    by_string: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in ordered[["id", "arm", "length", "text", "finish", "exact"]].to_dict("records"):
        by_string[row["id"], row["arm"]].append({str(k): v for k, v in row.items()})
    out = []
    for i, name in enumerate(artifact.ids):
        fresh, target = by_string[name, "attack"], artifact.targets[i]
        out.append(
            _Row(
                id=name, length=fresh[0]["length"], target=target, prompt=artifact.prompts[i],
                answer=string_words.agreement(fresh[0]["text"], target), finish=fresh[0]["finish"],
                found_at=int(artifact.queries_at[i]) if artifact.found[i] else None,
                queries=int(artifact.queries[i]), search_finish=artifact.finish[i],
                exact=sum(row["exact"] for row in fresh), repeats=len(fresh),
                initial=by_string[name, "initial"][0]["exact"],
            )
        )  # fmt: skip
    return out


def _provenance(record: Record, artifact: Strings, flags: Mapping[str, str]) -> dict[str, Any]:
    cell, found = record.cell, shared._provenance(record, flags)
    configs = [("Model under attack", {**cell.task.config, "model": cell.task.model})]
    configs += [("Attack", cell.attack.config)]
    configs += [(f"Defence {d.name}", d.config) for d in cell.defenses]
    # The plain prompts stand in the evidence; hundreds of them would bury the rest.
    configs += [("What the search says of itself", {k: v for k, v in artifact.notes.items() if k != "plain"})]
    found["configs"] = [(title, words.settings(config)) for title, config in configs]
    proxy = int(np.sum(artifact.proxy_queries))
    return {**found, "search_queries": int(artifact.queries.sum()), "proxy_queries": proxy}
