"""Filters that look at one label's representations at a time, and remove the highest scores among its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from defenses.poisoning._filtering import Inspect, backbone, given_labels
from defenses.poisoning._spectre import highest
from defenses.poisoning._told import Told
from redteam.core.context import Context
from redteam.learn.nouns import Layer, TrainingSet
from redteam.threats.poisoning.filtering import Verdicts
from redteam.threats.poisoning.nouns import Trainable


@dataclass(frozen=True)
class Judged:
    """Scores (n,) of one label's rows, higher is more suspicious, and how far the label stands out from others."""

    scores: np.ndarray
    suspicion: float
    notes: Mapping[str, Any] = field(default_factory=dict)


def most_suspicious(suspicion: Mapping[int, float], count: int) -> tuple[int, ...]:
    """The `count` labels that stand out the most, in ascending order; of equal ones the lower."""
    return tuple(sorted(sorted(suspicion, key=lambda label: (-suspicion[label], label))[:count]))


def by_label(config: Told, layer: Layer, judge: Callable[[np.ndarray], Judged]) -> Inspect:
    """What looks at the labels of `config` with `judge`: representations (n, d) of one label to `Judged`.

    Of each label looked at, `flagged` x assumed rows go (all, if it has no more). Where the labels are to be
    suspected, all are judged and scored, and those with the highest suspicion are looked at.
    """

    def inspect(target: Trainable, data: TrainingSet, seed: int, ctx: Context) -> Verdicts:
        model, trained = backbone(target, data, seed, ctx)
        given = given_labels(data)
        chosen = config.chosen(len(target.train.classes))
        scores = np.full(len(given), np.nan, dtype=np.float32)
        removed = np.zeros(len(given), dtype=bool)
        judged: dict[int, Judged] = {}
        for label in range(len(target.train.classes)) if chosen is None else chosen:
            rows = np.flatnonzero(given == label)
            if len(rows):
                judged[label] = judge(model.features(data.images[rows], layer))
                scores[rows] = judged[label].scores
        if chosen is None:
            chosen = most_suspicious({label: j.suspicion for label, j in judged.items()}, config.suspects)
        for label in chosen:
            if label in judged:
                rows = np.flatnonzero(given == label)
                count = round(config.flagged * config.assumed())
                removed[rows[highest(judged[label].scores, count)]] = True
        labels = {str(label): {"suspicion": j.suspicion, **j.notes} for label, j in judged.items()}
        return Verdicts(removed, scores, trained, {"looked_at": list(chosen), "labels": labels})

    return inspect
