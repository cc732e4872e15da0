"""Filters that give every row one score, comparable across labels, and remove the worst."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from defenses.poisoning._filtering import given_labels
from defenses.poisoning._told import Told
from redteam.core.config import knob
from redteam.learn.nouns import TrainingSet
from redteam.threats.poisoning.filtering import Verdicts

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
