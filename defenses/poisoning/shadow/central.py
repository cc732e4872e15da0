"""Shadow filtering of one training: rows, or shards of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from defenses.poisoning._filtering import Behind, backbone, given_labels, subset, trained_images
from defenses.poisoning._spectre import fit_spectre, highest
from defenses.poisoning.shadow.config import Config
from redteam.core.context import Context
from redteam.core.errors import ThreatMismatchError
from redteam.learn.nouns import Featured, TrainingSet
from redteam.learn.train import Stop
from redteam.threats.poisoning.filtering import FilteredClassifier, Overridden, Verdicts


@dataclass(frozen=True)
class Flagged:
    """The filter's word on one label. rows: (r,) those with the label; scores: (r,); removed: (r,) bool.

    threshold: the lowest score that is removed (infinite: none is). suspicion: how far the label stands out.
    """

    rows: np.ndarray
    scores: np.ndarray
    removed: np.ndarray
    threshold: float
    suspicion: float


def flag(features: np.ndarray, rows: np.ndarray, config: Config) -> Flagged:
    """Judge the rows of one label by their representations, (r, d) in the order of `rows`.

    With shards the mean of so many rows is judged, and all of them share the verdict.
    """
    shards = np.arange(len(rows)) // config.shard
    sizes = np.bincount(shards)
    means = np.zeros((len(sizes), features.shape[1]))
    np.add.at(means, shards, features.astype(np.float64))
    means /= sizes[:, None]
    assumed = config.assumed() / config.shard
    ks = None if config.k is None else (config.k,)
    fitted = fit_spectre(means, assumed, ks=ks, flagged=config.flagged)
    scores = fitted.found.scores
    removed = highest(scores, round(config.flagged * assumed))
    return Flagged(rows, scores[shards], removed[shards], fitted.threshold, fitted.found.suspicion)


@dataclass(frozen=True)
class Shadowed(Behind):
    """A trainable whose classifiers have shadows. Each seed has its own verdicts."""

    settings: Config

    def fit(self, data: TrainingSet, seeds: Sequence[int], ctx: Context) -> list[FilteredClassifier]:
        """One classifier per seed: a backbone and a shadow for each label looked at.

        Raises:
            ThreatMismatchError: the target's trainings cannot be stopped early.
            RedteamError: the filter leaves less than one batch.
        """
        if not hasattr(self.inner, "with_config"):
            raise ThreatMismatchError(
                f"shadow filtering stops trainings early: expected the image classifier itself, got "
                f"{type(self.inner).__name__}; put this defence innermost (its --defense first)"
            )
        return [self._fit(data, seed, ctx) for seed in seeds]

    def _fit(self, data: TrainingSet, seed: int, ctx: Context) -> FilteredClassifier:
        model, trained = backbone(self.inner, data, seed, ctx)
        found = self._judge(model, data)
        removed = np.zeros(len(data.targets), bool)
        scores = np.full(len(data.targets), np.nan, np.float32)
        shadows, notes = {}, {}
        for label, verdict in found.items():
            own = np.zeros(len(removed), bool)
            own[verdict.rows[verdict.removed]] = True
            rest = subset(data, np.flatnonzero(~own), self.config.batch_size, self.name)
            stop = Stop(label=label, change=self.settings.change, floor=self.settings.floor)
            (shadow,) = self.inner.fit(rest, [seed], ctx, stop=stop)
            trained += trained_images(shadow)
            removed |= own
            scores[verdict.rows] = verdict.scores
            shadows[label] = shadow
            notes[str(label)] = {
                "threshold": verdict.threshold, "suspicion": verdict.suspicion, "images": trained_images(shadow),
            }  # fmt: skip
        return FilteredClassifier(
            Overridden(model, shadows), Verdicts(removed, scores, trained, {"shadows": notes})
        )

    def _judge(self, model: Featured, data: TrainingSet) -> dict[int, Flagged]:
        """The labels that get a shadow, each with its verdict."""
        labels = given_labels(data)
        classes = len(self.train.classes)
        chosen = self.settings.chosen(classes)
        found = {}
        for label in range(classes) if chosen is None else chosen:
            rows = np.flatnonzero(labels == label)
            if len(rows):
                features = model.features(data.images[rows], self.settings.layer)
                found[label] = flag(features, rows, self.settings)
        if chosen is None:
            ranked = sorted(found, key=lambda label: -found[label].suspicion)
            found = {label: found[label] for label in ranked[: self.settings.suspects]}
        return found
