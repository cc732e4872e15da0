"""k-NN label agreement: leave out the rows whose neighbours carry other labels.

Threat: poisoning, rows or labels. A row's score is the share of its k nearest neighbours, by cosine
similarity of the representations of a classifier trained without defence, whose given label is not
its own. A mislabelled image sits among images of its true class as long as the network has not
memorised the wrong label. What it is told: how many rows to remove (1.5 for each poison assumed).
Source: [papernot2018dknn] for judging a label by the labels of neighbours in representation space
(remembered); removing by rank is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.neighbors import NearestNeighbors

from defenses.poisoning._filtering import Inspect, backbone, filter_spec, given_labels
from defenses.poisoning._ranked import Labels, labels_knob, ranked
from defenses.poisoning._told import Told, oracle, told
from redteam.core.config import knob
from redteam.core.context import Context
from redteam.core.errors import ConfigError
from redteam.learn.nouns import Layer, TrainingSet
from redteam.threats.poisoning.filtering import Verdicts
from redteam.threats.poisoning.nouns import Trainable


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Told):
    """Knobs."""

    labels: Labels = labels_knob()
    neighbours: int = knob(20, "neighbours asked, the row itself left out", low=1)
    layer: Layer = knob("penultimate", "representation compared: penultimate or spatial")


def disagreement(features: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Share of the k nearest other rows by cosine similarity that carry another label, (n,) float64.

    features: (n, d). Where two rows are equal, which of them counts as the row itself does not matter.

    Raises:
        ConfigError: there are not k other rows.
    """
    if k >= len(features):
        raise ConfigError(f"neighbours: expected fewer than the {len(features)} training rows, got {k}")
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.where(norms > 0, norms, 1)
    # On unit vectors the order by Euclidean distance is that by cosine similarity. Without an argument the
    # library leaves each row out of its own neighbours.
    found = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(unit).kneighbors(return_distance=False)
    share: np.ndarray = (labels[found] != labels[:, None]).mean(1)
    return share


def _inspect(config: Config) -> Inspect:
    def inspect(target: Trainable, data: TrainingSet, seed: int, ctx: Context) -> Verdicts:
        model, trained = backbone(target, data, seed, ctx)
        features = model.features(data.images, config.layer)
        return ranked(config, data, disagreement(features, given_labels(data), config.neighbours), trained)

    return inspect


SPEC = filter_spec("knn-agreement", Config, _inspect, "papernot2018dknn", told=told, oracle=oracle)
