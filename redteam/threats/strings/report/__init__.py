"""The page of adversarial strings: success against queries, how answers ended, and every string with its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from redteam.core.record import Metric, Record
from redteam.report import page
from redteam.report.beside import comparable, of_metric, same_question
from redteam.threats.strings.artifact import Strings
from redteam.threats.strings.metrics import CLASSES, class_of, judged
from redteam.threats.strings.report import plots, words
from redteam.threats.strings.report import series as string_series

__all__ = ["render"]

LAYOUT = page.Layout(
    template=Path(__file__).with_name("page.html.j2"), artifact=Strings, tables=("outcomes", "search", "trace"),
    subject="Model under attack", headline=words.HEADLINE, definitions=words.DEFINITIONS, victims=False,
    notes="What the search says of itself",
)  # fmt: skip
_FIRST_SHOWN = 20
_ARMS = {
    "attack": "adversarial prompts, each repeat", "initial": "initial prompts",
    "none": "no adversarial string, undefended",
}  # fmt: skip
_ORDER = ("length<=8", "length 9-16", "length>16")


def render(
    run: Path, siblings: Sequence[Record], dataset: Any | None, *, flags: Mapping[str, str] | None = None
) -> str:
    """The page of adversarial strings; see `redteam.report.page.Render`.

    Beside the run stand siblings with its task and defences; their searches are drawn if their folders lie
    beside `run`. The data set is not shown.
    """
    record, artifact, tables = page.read(LAYOUT, run, dataset)
    beside = comparable(record, siblings, same_question)
    series, outcomes = string_series.series(run, beside), judged(tables["outcomes"])
    rows = _rows(artifact, outcomes)
    return page.render(
        LAYOUT, record, flags=flags, left_out=page.left_out(siblings, beside),
        # The plain prompts stand in the evidence; hundreds of them would bury the rest.
        notes={k: v for k, v in artifact.notes.items() if k != "plain"},
        title=f"{record.cell.attack.name} on {record.cell.task.dataset}",
        summary=words.summary(record, artifact, series),
        strings=len(artifact.ids),
        pooled=string_series.POOLED,
        grouped=words.GROUPED,
        groups=_groups(record),
        **_evidence(artifact, outcomes, tables["trace"]),
        success_svg=plots.success_svg(series, record.id, of_metric(record, "initial_success")),
        spent_svgs=_spent_curves(run, record, beside, artifact),
        series=series,
        first_rows=rows[:_FIRST_SHOWN],
        more_rows=rows[_FIRST_SHOWN:],
        search_queries=int(artifact.queries.sum()),
        proxy_queries=int(np.sum(artifact.proxy_queries)),
    )  # fmt: skip


def _spent_curves(
    run: Path, record: Record, beside: Sequence[Record], artifact: Strings
) -> list[tuple[str, Any]]:
    """The same curve against tokens, and against dollars where the search cost any."""
    initial = of_metric(record, "initial_success")
    units = ["tokens", *(["usd"] if artifact.usd.max() > 0 else [])] if artifact.tokens.max() > 0 else []
    drawn = [
        (u, plots.success_svg(string_series.series(run, beside, u), record.id, initial, u)) for u in units
    ]
    return [(unit, svg) for unit, svg in drawn if svg is not None]


def _groups(record: Record) -> list[tuple[str, list[Metric | None]]]:
    """(group, its metrics in the order of `GROUPED`), lengths first."""
    names = {m.group for m in record.metrics if m.group is not None}
    ordered = sorted(names, key=lambda g: (_ORDER.index(g) if g in _ORDER else len(_ORDER), g))
    return [(g, [record.metric(n, g) for n in words.GROUPED]) for g in ordered]


def _evidence(artifact: Strings, outcomes: pd.DataFrame, trace: pd.DataFrame) -> dict[str, Any]:
    return {
        "template": str(outcomes["template"].iloc[0]),
        "repeats": int(outcomes.loc[outcomes["arm"] == "attack", "sample"].nunique()),
        "classes": ["#exact", "#other answer", *(f"#{name}" for name in CLASSES)],
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
        "svg": plots.trace_svg([q for q, _ in points], [x for _, x in points], found_at),
    }  # fmt: skip


def _rows(artifact: Strings, outcomes: pd.DataFrame) -> list[dict[str, Any]]:
    """What the page says of each string. answer: the part that agrees with the target, and the rest."""
    ordered = outcomes.sort_values("sample", kind="stable")
    fresh = {key: part.to_dict("list") for key, part in ordered.groupby(["id", "arm"], sort=False)}
    out = []
    for i, (name, target) in enumerate(zip(artifact.ids, artifact.targets, strict=True)):
        asked = fresh[name, "attack"]
        out.append({
            "id": name, "length": asked["length"][0], "target": target, "prompt": artifact.prompts[i],
            "answer": words.agreement(asked["text"][0], target), "finish": asked["finish"][0],
            "found_at": int(artifact.queries_at[i]) if artifact.found[i] else None,
            "queries": int(artifact.queries[i]), "search_finish": artifact.finish[i],
            "exact": sum(asked["exact"]), "repeats": len(asked["exact"]), "initial": fresh[name, "initial"]["exact"][0],
        })  # fmt: skip
    return out
