"""Filters that give every row one score, comparable across labels, and remove the worst."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from defenses.poisoning._filtering import FILTER_THREAT, Filtering, given_labels
from defenses.poisoning._told import Told, oracle, told
from redteam.core.config import knob, to_json
from redteam.core.types import Spec
from redteam.learn.nouns import TrainingSet
from redteam.threats.poisoning.filtering import Verdicts
from redteam.threats.poisoning.nouns import Trainable

Labels = Literal["known", "suspected", "all"]


def labels_knob() -> Any:
    """`labels` of a filter whose scores can be compared across labels: all of them, in one ranking, by default."""
    return knob("all", "known: rank the rows of the told label alone; suspected, all: rank all rows together")


def ranked(config: Told, data: TrainingSet, scores: np.ndarray, trained: int, **notes: Any) -> Verdicts:
    """Remove the `flagged` x assumed rows with the highest scores (n,); with labels=known, of the told label.

    Equal scores go by row number, the first one first.
    """
    labels, scores = given_labels(data), scores.astype(np.float32)
    if config.labels == "known":
        scores = np.where(labels == config.label, scores, np.nan).astype(np.float32)
    rows = np.flatnonzero(~np.isnan(scores))
    worst = rows[np.argsort(-scores[rows], kind="stable")[: round(config.flagged * config.assumed())]]
    removed = np.zeros(len(scores), bool)
    removed[worst] = True
    return Verdicts(removed, scores, trained, notes)


def ranked_spec(name: str, config: type, inspect: Any, source: str) -> Spec:
    """The `SPEC` of such a filter. inspect: `(config) -> Inspect`."""

    def run(target: Trainable, config: Told, ctx: Any) -> Trainable:
        """The target behind the filter."""
        defended: Trainable = Filtering(target, name, to_json(config), inspect(config))
        return defended

    return Spec(
        name=name, kind="defense", version="1", config=config, run=run,
        source=source, threat=FILTER_THREAT, told=told, oracle=oracle, baselines=("random-removal",),
    )  # fmt: skip
