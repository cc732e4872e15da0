"""FLAME: keep the largest cluster of directions, clip to the median length, add noise.

Threat: poisoning, fewer than half of a round's clients malicious. HDBSCAN on cosine distances with a smallest
cluster of K // 2 + 1 finds at most one cluster; the clients outside it get weight 0. Where it finds none,
nobody is removed. Then updates are clipped to the median length of all K, and each coordinate of their
weighted mean gets N(0, (noise x median length)^2). It is told nothing.
Score: 1 minus the strength of membership of that cluster; 1 outside it.
Source: [nguyen2022flame], algorithm 1 (remembered: smallest cluster, HDBSCAN's min_samples 1, noise 0.001 for
images). Whether the distances are those of updates (the paper's text) or of whole local models (its
algorithm) we remember both ways: `compare` chooses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from sklearn.cluster import HDBSCAN

from defenses.poisoning import _aggregation as shared
from redteam.core.config import Checked, knob
from redteam.threats.poisoning.federation.nouns import Round, aggregated


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Checked):
    """What is compared, and how much noise is added."""

    compare: Literal["updates", "models"] = knob("updates", "cosine distances of updates or of local models")
    noise: float = knob(0.001, "sd of the noise of each coordinate, in median lengths of updates", low=0)


def majority(distances: np.ndarray) -> np.ndarray | None:
    """(K,) strength of membership of the cluster that more than half belong to, 0 outside; None: there is none.

    distances: (K, K) float64.
    """
    count = len(distances)
    if count < 3:
        return None
    # scikit-learn counts the point itself among its neighbours: its 2 is 1 in the package `hdbscan`.
    found = HDBSCAN(
        min_cluster_size=count // 2 + 1, min_samples=2, metric="precomputed", allow_single_cluster=True, copy=True
    ).fit(distances)  # fmt: skip
    if found.labels_.max() < 0:
        return None
    return np.where(
        found.labels_ == np.bincount(found.labels_[found.labels_ >= 0]).argmax(), found.probabilities_, 0
    )


@dataclass(frozen=True)
class Flame:
    """The rule."""

    config: Config

    def __call__(self, round: Round) -> Round:
        """The round filtered, clipped and with its aggregate made. Notes `clip-norm`, `noise-sd`."""
        rows = shared.present(round, SPEC.name)
        if not len(rows):
            return round
        updates = round.updates[rows]
        vectors = shared.exact(updates)
        if self.config.compare == "models":
            vectors = vectors + shared.exact(round.params)
        distances = (1 - shared.cosines(vectors)).fill_diagonal_(0)
        strength = majority(distances.numpy())
        member = torch.ones(len(rows)) if strength is None else torch.from_numpy(strength)
        out = shared.reweighted(round, rows, (member > 0).float(), 1 - member)
        bound = shared.median(shared.norms(updates))
        out = shared.with_rows(out, rows, shared.clipped(updates, bound))
        mean, sd = aggregated(out), self.config.noise * bound
        notes = (*round.notes, ("clip-norm", bound), ("noise-sd", sd))
        return replace(out, mean=mean + shared.gaussian(mean, sd, round.generator), notes=notes)


SPEC = shared.rule_spec("flame", Config, lambda config, *_: Flame(config), "nguyen2022flame")
