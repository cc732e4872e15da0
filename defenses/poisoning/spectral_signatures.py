"""Spectral signatures: drop the rows that lie furthest along the top direction of their label.

Threat: poisoning. The defender holds the training data as given, trains on all of it once, drops the rows of a
label that are the most suspicious, and trains again on the rest. Told (as oracle knowledge): how many rows are
poisoned, and which label they were given.

Method. The score of a row is its squared projection, from the label's mean, on the top right singular vector of
the label's centred representations; the `flagged` x assumed highest go. Centred twice: direction and score alike.
Source: [tran2018spectral] algorithm 1 (remembered; the method and its 1.5 are also those of code read).

Deviations: representations are those of the penultimate layer unless told otherwise. With labels=suspected, the
labels whose top direction holds the largest share of the variance are looked at.

Limits: one direction, and squared projections: poisons that hide below the label's own largest variance stay.
Expect nothing of rows that were merely given a wrong label, unless a network fits them in a way of their own.

Expect, on planted spikes (`scripts/planted_spikes.py`, 20 seeds: 16 white dimensions, 5,000 clean rows, 250
poisons N(shift u, I), 375 flagged): recall 0.44, 0.76 and 0.94 at shifts 2, 3 and 4, where the best possible is
0.62, 0.87 and 0.98. White data flatter this filter: the spike is then the top direction from the start.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from defenses.poisoning._by_label import Judged, by_label
from defenses.poisoning._filtering import Inspect, filter_spec
from defenses.poisoning._spectre import principal
from defenses.poisoning._told import Told, oracle, told
from redteam.core.config import knob
from redteam.learn.nouns import Layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Told):
    """What the filter is told, and where it looks."""

    layer: Layer = knob("penultimate", "representation: penultimate, or spatial (the last with a height)")


def signature(features: np.ndarray) -> tuple[np.ndarray, float]:
    """Squared projections (n,) of features (n, d) on their top direction, and its share of the variance."""
    x = np.asarray(features, dtype=np.float64)
    mean, basis = principal(x, 1)
    if not basis.shape[1]:
        return np.zeros(len(x)), 0.0
    centred = x - mean
    scores = (centred @ basis[:, 0]) ** 2
    return scores, float(scores.sum() / np.square(centred).sum())


def _inspect(config: Config) -> Inspect:
    return by_label(config, config.layer, lambda features: Judged(*signature(features)))


SPEC = filter_spec("spectral-signatures", Config, _inspect, "tran2018spectral", told=told, oracle=oracle)
