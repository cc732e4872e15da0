"""The texts of a run with their verdicts, and what came back over all of them. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pandas as pd

from redteam.llm.language import ANSWERED
from redteam.threats.moderation.artifact import Suffixes
from redteam.threats.moderation.metrics import SCORE
from redteam.threats.moderation.report.words import ARMS
from redteam.threats.moderation.scorer import suffixes


@dataclass(frozen=True)
class Verdicts:
    """The fresh verdicts on one text in one arm. total: mean sum of category scores; None if none was given."""

    passed: int
    asked: int
    unanswered: tuple[str, ...]
    total: float | None

    @property
    def passes(self) -> bool:
        """Whether most verdicts are not flagged."""
        return 2 * self.passed > self.asked


@dataclass(frozen=True)
class Row:
    """One text with its suffixes. verdicts: by arm. seen: sum of scores before and after, as the search saw it."""

    id: str
    split: str
    text: str
    suffix: str
    random: str
    verdicts: dict[str, Verdicts]
    queries: int
    seen: tuple[float, float]
    search: str


def rows(artifact: Suffixes, outcomes: pd.DataFrame) -> list[Row]:
    """The texts in the order of the artifact."""
    found = {key: _verdicts(part) for key, part in outcomes.groupby(["id", "arm"], sort=False)}
    ours, random = (suffixes(artifact.texts, sent) for sent in (artifact.sent, artifact.control))
    return [
        Row(
            id=name, split=artifact.split[i], text=artifact.texts[i], suffix=ours[i], random=random[i],
            verdicts={arm: found[name, arm] for arm in ARMS}, queries=int(artifact.queries[i]),
            seen=(float(artifact.score_before[i]), float(artifact.score_after[i])), search=artifact.finish[i],
        )
        for i, name in enumerate(artifact.ids)
    ]  # fmt: skip


def _verdicts(part: pd.DataFrame) -> Verdicts:
    answered = part["finish"].isin(ANSWERED)
    passed = int((answered & ~part["flagged"].astype(bool)).sum())
    total = float(part.loc[answered, "total"].mean()) if answered.any() else None
    return Verdicts(passed, len(part), tuple(part.loc[~answered, "finish"]), total)


def endings(outcomes: pd.DataFrame) -> tuple[list[str], dict[str, list[int]]]:
    """(kinds of endings, verdicts of each kind by arm). Not flagged and flagged come first."""
    answered = outcomes["finish"].isin(ANSWERED)
    kind = np.where(
        answered, np.where(outcomes["flagged"].astype(bool), "flagged", "passed"), outcomes["finish"]
    )
    kinds = ["passed", "flagged", *sorted(set(outcomes.loc[~answered, "finish"]))]
    counts = {arm: Counter(kind[outcomes["arm"] == arm]) for arm in ARMS}
    return kinds, {arm: [counts[arm][k] for k in kinds] for arm in ARMS}


def categories(outcomes: pd.DataFrame) -> list[tuple[str, list[float | None]]]:
    """(category, its mean score in each arm) over the answered verdicts, the largest as it was first."""
    means = outcomes[outcomes["finish"].isin(ANSWERED)].groupby("arm").mean(numeric_only=True)
    names = [c for c in outcomes if str(c).startswith(SCORE)]
    found: list[tuple[str, list[float | None]]] = []
    for name in names:
        known = means[name].dropna()
        values = [float(known[arm]) if arm in known else None for arm in ARMS]
        found.append((str(name).removeprefix(SCORE), values))
    return sorted(found, key=lambda pair: (-(pair[1][0] or 0.0), pair[0]))


def cost(artifact: Suffixes) -> list[tuple[str, list[float]]]:
    """(split, [texts, median, largest and total queries, median drop of the score in the search])."""
    split = np.array(artifact.split)
    drop = artifact.score_before - artifact.score_after
    out: list[tuple[str, list[float]]] = []
    for name in sorted(set(artifact.split)):
        queries, mine = artifact.queries[split == name], drop[split == name]
        known = mine[np.isfinite(mine)]
        middle = float(np.median(known)) if len(known) else float("nan")
        spent = [float(x) for x in (len(queries), np.median(queries), queries.max(), queries.sum())]
        out.append((name, [*spent, middle]))
    return out
