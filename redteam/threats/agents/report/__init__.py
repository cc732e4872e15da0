"""The page of an attack on an agent: privacy against utility, what was shared, and every conversation."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from redteam.core.record import Metric, Record
from redteam.report import page
from redteam.threats.agents.artifact import Scripts
from redteam.threats.agents.metrics import sensitivity
from redteam.threats.agents.nouns import LABELS
from redteam.threats.agents.report import plots, series, transcripts, words

__all__ = ["render"]

LAYOUT = page.Layout(
    template=Path(__file__).with_name("page.html.j2"), artifact=Scripts,
    tables=("questions", "transcripts", "norms", "facts", "verdicts"), subject="Agent", headline=words.HEADLINE,
    definitions=words.DEFINITIONS, victims=False,
    pinned=("rules",),  # the digest of the rule table
)  # fmt: skip
_ENDS = ("answered", "empty", "refused", "filtered", "error", "timeout")
_OUTCOMES = ("ok", "repaired", "malformed", "error")
_TELLING = 10  # labels in the table of what hangs on them
_RAW = 10  # malformed answers of a minimiser


@dataclass(frozen=True)
class Counts:
    """What became of the questions of one task or field. (shared, withheld) by label; allowed: (provided, not)."""

    name: str
    pairs: dict[str, tuple[int, int]]
    privacy: Metric | None = None
    utility: Metric | None = None


@dataclass(frozen=True)
class Square:
    """One field in one task. shared: of `asked`; of an allowed field, provided."""

    label: str
    shared: int
    asked: int

    @property
    def share(self) -> float:
        """Fraction."""
        return self.shared / self.asked


def render(
    run: Path, siblings: Sequence[Record], dataset: Any | None, *, flags: Mapping[str, str] | None = None
) -> str:
    """The page of an attack on an agent; see `redteam.report.page.Render`.

    Beside the run stand siblings with its task, whatever their attack and defences. The data set is not shown.
    """
    record, artifact, tables = page.read(LAYOUT, run, dataset)
    verdicts, beside = tables["verdicts"], series.comparable(record, siblings)
    groups = series.groups(beside)
    notes = {s.question.id: tuple(one.note for one in s.sessions) for s in artifact.scripts}
    shelves, untold = transcripts.shelves(tables, notes)
    return page.render(
        LAYOUT, record, flags=flags, left_out=page.left_out(siblings, beside), notes=artifact.notes,
        title=f"{series.attack_name(record)} on {record.cell.task.model}",
        behind=series.behind(record),
        summary=words.summary(record, tables, groups),
        asked=len(verdicts),
        users=verdicts["profile"].nunique(),
        tasks=verdicts["task"].nunique(),
        **_frontier(record, groups),
        **_confusion(record, tables),
        **_leaks(record, tables),
        minimiser=_minimiser(tables),
        judge=_judge(tables),
        shelves=shelves,
        untold=untold,
        shown=transcripts.shown,
        transcripts_at=next(f"{record.id}/{e.path}" for e in record.evidence if "transcripts" in e.path),
        attack_queries=int(artifact.queries.sum()),
    )  # fmt: skip


def _frontier(record: Record, groups: Sequence[series.Group]) -> dict[str, Any]:
    panels = [
        (g, plots.frontier_svg([g], record.id, f"frontier-{i}", small=True)) for i, g in enumerate(groups)
    ] if len(groups) > 1 else []  # fmt: skip
    shapes = {p.shape: p for g in groups for p in g.points}
    return {
        "groups": groups,
        "frontier_svg": plots.frontier_svg(groups, record.id),
        "panels": [(g, svg) for g, svg in panels if svg is not None],
        "shapes": [shapes[i] for i in sorted(shapes)],
        "colour_of": plots.colour,
    }


# ---------------------------------------------------------------- what was shared


def _confusion(record: Record, tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    verdicts = tables["verdicts"]
    rows = verdicts[verdicts["present"].astype(bool)]
    tasks = list(dict.fromkeys(verdicts["task"]))
    fields = [f for f in dict.fromkeys(tables["norms"]["field"]) if (verdicts["field"] == f).any()]
    total = _counts("all", rows, record)
    hang = sensitivity(tables)
    hang["change"] = (
        hang[[f"{m}_change_{s}" for m in ("privacy", "utility") for s in LABELS]].abs().max(axis=1)
    )
    hang = hang.sort_values(["change", "task", "field"], ascending=[False, True, True], kind="stable")
    return {
        "labels": LABELS,
        "by_task": [*(_counts(t, rows[rows["task"] == t], record, f"task={t}") for t in tasks), total],
        "by_field": [_counts(f, rows[rows["field"] == f], record, f"field={f}") for f in fields],
        "heat": (tasks, [(f, [_square(rows, t, f) for t in tasks]) for f in fields]),
        "hang": hang.head(_TELLING).to_dict("records"),
        "endings": _endings(verdicts),
        "ends": ["field is", *(f"#{end}" for end in _ENDS), "#reads as a refusal"],
    }


def _told(rows: pd.DataFrame) -> pd.Series:
    """Whether each was given: exactly, of allowed fields; in any way, of others."""
    return rows["shared"].astype(bool).where(rows["label"] != "allowed", rows["exact"].astype(bool))


def _counts(name: str, rows: pd.DataFrame, record: Record, group: str | None = None) -> Counts:
    pairs: dict[str, tuple[int, int]] = {}
    for label in LABELS:
        told = _told(rows[rows["label"] == label])
        pairs[label] = (int(told.sum()), int((~told.astype(bool)).sum()))
    return Counts(name, pairs, record.metric("privacy", group), record.metric("utility", group))


def _square(rows: pd.DataFrame, task: str, field: str) -> Square | None:
    here = rows[(rows["task"] == task) & (rows["field"] == field)]
    return Square(str(here["label"].iloc[0]), int(_told(here).sum()), len(here)) if len(here) else None


def _endings(verdicts: pd.DataFrame) -> list[tuple[str, list[int]]]:
    """(label, conversations that ended in each way, and those that read as refusals)."""
    out: list[tuple[str, list[int]]] = []
    for label in LABELS:
        rows = verdicts[verdicts["label"] == label]
        ended = Counter(rows["finish"])
        out.append((label, [*(ended[e] for e in _ENDS), int(rows["refused"].astype(bool).sum())]))
    return out


def _leaks(record: Record, tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    verdicts = tables["verdicts"]
    rows = verdicts[verdicts["present"].astype(bool)]
    lost = rows[rows["label"] == "forbidden"]
    others = Counter(name for listed in rows["others"] for name in json.loads(listed))
    kinds = [
        ("exact", int(lost["exact"].astype(bool).sum()), record.metric("leak_exact"), ""),
        ("encoded", int((lost["encoded"] != "").sum()), record.metric("leak_encoded"), _named(lost["encoded"])),
        ("derived", int((lost["derived"] != "").sum()), record.metric("leak_derived"), _named(lost["derived"])),
        ("any of these", int(lost["shared"].astype(bool).sum()), record.metric("leaks"), ""),
        ("other fields", int((rows["others"] != "[]").sum()), record.metric("other_leaks"), _listed(others)),
        ("another user's", int(lost["decoy"].astype(bool).sum()), record.metric("decoy_matches"), "false alarms"),
    ]  # fmt: skip
    asked = [
        (label, len(part), int((part["requested"] > 0).sum()), int(part["approved"].astype(bool).sum()),
         int((part["approved"].astype(bool) & _told(part)).sum()))
        for label in LABELS
        for part in (rows[rows["label"] == label],)
    ]  # fmt: skip
    wanted = Counter(name for listed in tables["transcripts"]["requested"] for name in json.loads(listed))
    return {"kinds": kinds, "escalations": asked, "wanted": _listed(wanted)}


def _named(column: pd.Series) -> str:
    return _listed(Counter(name for name in column if name))


def _listed(found: Counter[str]) -> str:
    """`age 12, city 3`, the most frequent first, twelve at most."""
    ordered = sorted(found.items(), key=lambda kv: (-kv[1], kv[0]))
    more = f" and {len(ordered) - 12} more" if len(ordered) > 12 else ""
    return ", ".join(f"{name} {n}" for name, n in ordered[:12]) + more


# ---------------------------------------------------------------- minimiser and judge


def _minimiser(tables: Mapping[str, pd.DataFrame]) -> dict[str, Any] | None:
    """Per task: allowed fields kept in by every answer, forbidden ones kept out by all; how the answers ended."""
    made = tables.get("minimised")
    if made is None or made.empty:
        return None
    held = {(r.profile, r.field) for r in tables["facts"].itertuples() if r.present}
    norms: dict[str, list[tuple[str, str]]] = {}
    for task, name, label in tables["norms"][["task", "field", "label"]].itertuples(index=False):
        norms.setdefault(str(task), []).append((str(name), str(label)))
    rows: dict[str, Counter[str]] = {}
    for key, part in made.groupby(["profile", "task"], sort=False):
        profile, task = map(str, key)
        through = [set(json.loads(listed)) for listed in part["fields"]]
        counts = rows.setdefault(task, Counter())
        counts["pairs"] += 1
        for name, label in norms.get(task, ()):
            if (profile, name) in held:
                kept = (
                    all(name in t for t in through) if label == "allowed" else any(name in t for t in through)
                )
                counts[f"{label} {'in' if kept else 'out'}"] += 1
        counts.update(part["outcome"])
    bad = made[made["outcome"] == "malformed"].head(_RAW)
    return {
        "rows": [(task, counts) for task, counts in rows.items()],
        "outcomes": _OUTCOMES,
        "noted": int((made["note"] != "").sum()),
        "bad": [(r.profile, r.task, r.attempts, r.raw) for r in bad.itertuples()],
    }


def _judge(tables: Mapping[str, pd.DataFrame]) -> list[tuple[str, list[int]]] | None:
    """What the judge said of what the detector calls leaked, and of what it does not."""
    if "judged" not in tables or tables["judged"].empty:
        return None
    both = tables["judged"].merge(tables["verdicts"][["id", "shared"]], on="id")
    out = []
    for name, yes in (("leaked, by the detector", True), ("withheld, by the detector", False)):
        said = Counter(both.loc[both["shared"].astype(bool) == yes, "said"])
        out.append((name, [said[word] for word in ("yes", "no", "unclear")]))
    return out
