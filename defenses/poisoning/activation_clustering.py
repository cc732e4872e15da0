"""Activation clustering: cut each label's representations in two, and leave out a small, distinct part.

Threat: poisoning, rows that share a trigger. For each label the representations of a classifier
trained without defence are reduced to a few components and cut by 2-means. Where the cut is clean (mean
silhouette) and the smaller part is small enough, that part is left out. It is told nothing.
Source: [chen2018activation] (remembered: ICA to 10 components, relative size 0.35, silhouette). The
threshold of the silhouette, 0.10, lies in the range the paper calls a weak cut as we remember it.

Deviation: principal components by default. Independent ones have unit variance each, which hides a cluster
that stands out: with them 2-means misses one planted 8 standard deviations away (tests). `-o reduction=ica`
gives the paper's form.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA, FastICA
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import silhouette_score

from defenses.poisoning._filtering import Inspect, backbone, filter_spec, given_labels
from redteam.core.config import Checked, knob
from redteam.core.context import Context
from redteam.learn.nouns import Layer, TrainingSet
from redteam.threats.poisoning.filtering import Verdicts
from redteam.threats.poisoning.nouns import Trainable

# The silhouette of larger sets is measured on so many rows: it is quadratic in them.
_SILHOUETTE_ROWS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Checked):
    """Knobs."""

    components: int = knob(10, "dimensions before the cut", low=1)
    size: float = knob(
        0.35, "the smaller part is left out if it is at most this share of its label", above=0, high=0.5
    )
    silhouette: float = knob(0.10, "and if the cut's mean silhouette is at least this", low=-1, high=1)
    reduction: Literal["pca", "ica"] = knob("pca", "principal or independent components")
    layer: Layer = knob("penultimate", "representation clustered: penultimate or spatial")


@dataclass(frozen=True)
class Cut:
    """Two parts of a label's rows. smaller: (n,) bool; nearer: (n,) how much nearer its centre than the other's."""

    smaller: np.ndarray
    nearer: np.ndarray
    size: float
    silhouette: float


def cut_in_two(features: np.ndarray, components: int, seed: int, reduction: str = "pca") -> Cut | None:
    """The smaller of two clusters of (n, d) representations; None where there is nothing to cut."""
    rank = int(np.linalg.matrix_rank(features - features.mean(0))) if len(features) > 1 else 0
    k = min(components, rank, len(features) - 1)
    if k < 1 or len(features) < 4:
        return None
    points = PCA(k, svd_solver="full").fit_transform(features.astype(np.float64))
    if reduction == "ica" and k > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            points = FastICA(k, random_state=seed, whiten="unit-variance", max_iter=200).fit_transform(points)
    means = KMeans(2, n_init=10, random_state=seed).fit(points)
    smaller = means.labels_ == int((means.labels_ == 1).mean() < 0.5)
    if smaller.all() or not smaller.any():
        return None
    distances = means.transform(points)
    own = int(means.labels_[smaller][0])
    score = silhouette_score(
        points, means.labels_, sample_size=min(len(points), _SILHOUETTE_ROWS), random_state=seed
    )
    return Cut(smaller, distances[:, 1 - own] - distances[:, own], float(smaller.mean()), float(score))


def _inspect(config: Config) -> Inspect:
    def inspect(target: Trainable, data: TrainingSet, seed: int, ctx: Context) -> Verdicts:
        model, trained = backbone(target, data, seed, ctx)
        labels = given_labels(data)
        removed, scores = np.zeros(len(labels), bool), np.full(len(labels), np.nan, np.float32)
        notes = {}
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            cut = cut_in_two(
                model.features(data.images[rows], config.layer), config.components,
                int(ctx.rng("cut", int(label)).integers(2**31)), config.reduction,
            )  # fmt: skip
            if cut is None:
                continue
            scores[rows] = cut.nearer
            notes[str(label)] = {"size": round(cut.size, 4), "silhouette": round(cut.silhouette, 4)}
            if cut.size <= config.size and cut.silhouette >= config.silhouette:
                removed[rows[cut.smaller]] = True
        return Verdicts(removed, scores, trained, {"cuts": notes})

    return inspect


SPEC = filter_spec("activation-clustering", Config, _inspect, "chen2018activation")
