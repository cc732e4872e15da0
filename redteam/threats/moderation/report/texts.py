"""The texts of a run with their verdicts, and what came back over all of them. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from redteam.llm.language import ANSWERED
from redteam.threats.moderation.artifact import Suffixes
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


def rows(artifact: Suffixes, outcomes: pd.DataFrame) -> list[dict[str, Any]]:
    """What the page says of each text, in the order of the artifact. verdicts: by arm."""
    found = {key: _verdicts(part) for key, part in outcomes.groupby(["id", "arm"], sort=False)}
    ours, random = (suffixes(artifact.texts, sent) for sent in (artifact.sent, artifact.control))
    return [
        {
            "id": name, "split": artifact.split[i], "text": artifact.texts[i], "suffix": ours[i], "random": random[i],
            "verdicts": {arm: found[name, arm] for arm in ARMS}, "queries": int(artifact.queries[i]),
            "search": artifact.finish[i],
        }
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


def cost(artifact: Suffixes) -> list[tuple[str, list[float]]]:
    """(split, [texts, median, largest and total queries of the search]); texts held out take none."""
    table = pd.DataFrame({"split": artifact.split, "queries": artifact.queries}).groupby("split")["queries"]
    return [(str(name), [len(part), part.median(), part.max(), part.sum()]) for name, part in table]
