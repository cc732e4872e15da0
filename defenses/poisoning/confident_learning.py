"""Confident learning: leave out the rows that cleanlab finds mislabelled.

Threat: poisoning, labels. Each row is judged by classifiers that did not train on it: the data are cut
into folds, stratified by label, and each fold is predicted by a classifier fitted on the others.
cleanlab estimates the joint distribution of given and true labels and prunes by noise rate. It is
told nothing: the number to remove is its own estimate.
Source: [northcutt2021confident], through the library cleanlab (remembered; the library was run).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import softmax
from sklearn.model_selection import StratifiedKFold

from defenses.poisoning._filtering import Inspect, filter_spec, given_labels, subset, trained_images
from redteam.core.config import Checked, knob
from redteam.core.context import Context
from redteam.core.errors import ConfigError, RedteamError
from redteam.learn.nouns import TrainingSet
from redteam.threats.poisoning.filtering import Verdicts
from redteam.threats.poisoning.nouns import Trainable


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Checked):
    """Knobs."""

    folds: int = knob(2, "parts of the data, each predicted by a classifier of the others", low=2)
    prune: Literal["prune_by_noise_rate", "prune_by_class", "both", "confident_learning"] = knob(
        "prune_by_noise_rate", "how cleanlab chooses: its `filter_by`"
    )


def out_of_sample(
    target: Trainable, data: TrainingSet, folds: int, seed: int, ctx: Context
) -> tuple[np.ndarray, int]:
    """Class probabilities (n, K) of each row by a classifier that did not see it, and the images that took.

    Raises:
        RedteamError: a label has fewer rows than folds.
    """
    labels = given_labels(data)
    counts = np.bincount(labels)
    rare = np.flatnonzero((counts > 0) & (counts < folds))
    if len(rare):
        raise RedteamError(
            f"folds: expected at most the rows of each label; label {rare[0]} has {counts[rare[0]]} for {folds} folds"
        )
    logits, trained = None, 0
    cut = StratifiedKFold(folds, shuffle=True, random_state=int(ctx.rng("folds").integers(2**31)))
    for within, without in cut.split(np.zeros(len(labels)), labels):
        rest = subset(data, within, target.config.batch_size, "confident-learning")
        (model,) = target.fit(rest, [seed], ctx)
        said = model.logits(data.images[without])
        logits = np.empty((len(labels), said.shape[1])) if logits is None else logits
        logits[without] = said
        trained += trained_images(model)
    assert logits is not None
    return softmax(logits, axis=1), trained


def issues(labels: np.ndarray, probabilities: np.ndarray, prune: str) -> tuple[np.ndarray, np.ndarray]:
    """cleanlab's verdict (n,) bool and how bad each label looks, (n,) in [0, 1], 1 worst.

    Labels that no row carries are left out of what cleanlab sees.

    Raises:
        ConfigError: cleanlab is not installed.
    """
    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        raise ConfigError(
            "confident-learning needs the extra poisoning: pip install 'redteam[poisoning]'"
        ) from None
    present, coded = np.unique(labels, return_inverse=True)
    shown = probabilities[:, present]
    shown = shown / np.maximum(shown.sum(1, keepdims=True), 1e-12)
    found = find_label_issues(coded, shown, filter_by=prune, n_jobs=1)
    return np.asarray(found, bool), 1.0 - np.asarray(get_label_quality_scores(coded, shown))


def _inspect(config: Config) -> Inspect:
    def inspect(target: Trainable, data: TrainingSet, seed: int, ctx: Context) -> Verdicts:
        probabilities, trained = out_of_sample(target, data, config.folds, seed, ctx)
        removed, scores = issues(given_labels(data), probabilities, config.prune)
        return Verdicts(removed, scores.astype(np.float32), trained)

    return inspect


SPEC = filter_spec("confident-learning", Config, _inspect, "northcutt2021confident")
