"""SPECTRE: drop the rows (clients) that stand out once their label's covariance is estimated robustly.

Threat: poisoning. The defender holds the training data as given, trains on all of it once, drops the rows of a
label that score highest, and trains again on the rest; the server of a federation drops clients of each round
before it averages. Told (as oracle knowledge): how many rows or clients are poisoned, and the label they aim at.

Method, for one label: principal components of the representations; a robust covariance of these by filtering on
fourth moments; all samples whitened with it; scores x^T M x with M = expm(4 (S - I) / (||S|| - 1)) / trace for
the covariance S of the whitened samples; of ten numbers of components, that after whose removal the rest whitens
the whole least. `flagged` x assumed of the highest go. Source: [hayase2021spectre], section 3 and the code
released with it; see `defenses/poisoning/_spectre.py` for the deviations of the maths.

labels=all looks at each label in turn and drops so many of each; labels=suspected at those that stand out.
In a federation [wang2022shadow] a client is represented by the mean over its samples of the label, as it reports it,
or, with space=update, by its update, whatever the label. Everything is fitted anew in each round, over the
clients that have such samples; the others stay. Over several labels a client's score is the largest, over the
labels, of its multiple of the label's median score, times how far the label stands out: ranks would give each
label the same say, also those in which nobody stands out.

Deviations: the representation is that of the penultimate layer; the source takes one with height and width
(layer=spatial).

Limits: poisons that are a large part of a label, or that spread over many labels as label-only attacks do, stand
out little; and a client may report what it likes.

Expect, on planted spikes (`scripts/planted_spikes.py`, 20 seeds: 16 white dimensions, 5,000 clean rows, 250
poisons in one direction, 375 flagged). Scores alone, the clean covariance known, poisons N(2.5 u, 0.4 I): recall
0.71; with the elementwise exponential of two ports 0.16, with the Frobenius norm of another 0.00. The whole
method at k = 16 must estimate the covariance first, and poisons N(shift u, I) show in fourth moments from a shift
of about 4.3: recall 0.28, 0.42, 0.96 and 0.99 at 3, 4, 4.5 and 5 (best possible: 0.87, 0.98, 0.99 and 1.00).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch

from defenses.poisoning._aggregation import present
from defenses.poisoning._by_label import Judged, by_label, most_suspicious
from defenses.poisoning._filtering import Inspect, filter_spec
from defenses.poisoning._spectre import highest, spectre
from defenses.poisoning._told import Told, oracle, per_round, told
from redteam.core.config import knob
from redteam.core.types import Preset
from redteam.learn.nouns import Layer
from redteam.threats.poisoning.federation.nouns import Round


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Told):
    """What the filter is told, and where it looks."""

    layer: Layer = knob(
        "penultimate", "representation of a row: penultimate, or spatial (the last with a height)"
    )
    space: Literal["representation", "update"] = knob(
        "representation",
        "what represents a client: its mean representation, or its update (no label is needed)",
    )
    k: int | None = knob(None, "principal components; none: chosen", low=1)

    def ks(self) -> tuple[int, ...] | None:
        """Numbers of components to choose from."""
        return None if self.k is None else (self.k,)


def _judge(config: Config, features: np.ndarray) -> Judged:
    found = spectre(features, config.assumed(), ks=config.ks(), flagged=config.flagged)
    return Judged(found.scores, found.suspicion, {"k": found.k, "selected": int(found.selected.sum())})


@dataclass(frozen=True)
class _Look:
    """At K clients: scores (K,), NaN where not looked at; how far the label stands out; broken: (K,) bool."""

    scores: np.ndarray
    suspicion: float
    broken: np.ndarray


def joint_scores(looks: Iterable[_Look]) -> np.ndarray:
    """(K,) score of each client over several labels; NaN where no label has one."""
    best: np.ndarray | None = None
    for look in looks:
        seen = ~np.isnan(look.scores)
        middle = float(np.median(look.scores[seen])) if seen.any() else 0.0
        relative = look.scores * (look.suspicion / middle if middle > 0 else 0.0)
        best = relative if best is None else np.fmax(best, relative)
    if best is None:
        raise ValueError("expected at least one label")
    return best


@dataclass(frozen=True)
class Filter:
    """The rule of a federation; it keeps nothing from round to round. clients: of the whole federation."""

    config: Config
    clients: int

    def __call__(self, round: Round) -> Round:
        """The round without the clients that stand out, with scores of all that were looked at.

        A client that claims samples of a label and reports a representation that is not finite goes as well.
        """
        present(round, SPEC.name)
        weights = round.weights.clone()
        there = (weights > 0).cpu().numpy()
        looks = self._updates(round, there) if self.config.space == "update" else self._labels(round, there)
        scores = np.full(len(there), np.nan)
        if looks:
            scores = joint_scores(looks.values()) if len(looks) > 1 else next(iter(looks.values())).scores
        seen = np.flatnonzero(~np.isnan(scores))
        out = np.zeros(len(there), dtype=bool)
        out[seen[highest(scores[seen], per_round(self.config, self.clients, len(there)))]] = True
        for look in looks.values():
            out |= look.broken
        weights[torch.from_numpy(out).to(weights.device)] = 0
        return replace(round, weights=weights, scores=torch.from_numpy(scores.astype(np.float32)))

    def _updates(self, round: Round, there: np.ndarray) -> dict[int, _Look]:
        """One look at the updates, whatever the labels."""
        return {-1: self._look(round.updates.detach().cpu().numpy(), there)} if there.any() else {}

    def _labels(self, round: Round, there: np.ndarray) -> dict[int, _Look]:
        """A look at each label that counts and that somebody has."""
        chosen = self.config.chosen(round.learner.classes)
        looks: dict[int, _Look] = {}
        for label in range(round.learner.classes) if chosen is None else chosen:
            means, counts = round.learner.represent(round.params, label)
            having = there & (counts > 0).cpu().numpy()
            if having.any():
                looks[label] = self._look(means.detach().cpu().numpy(), having)
        if chosen is None:
            chosen = most_suspicious({k: look.suspicion for k, look in looks.items()}, self.config.suspects)
        return {label: look for label, look in looks.items() if label in chosen}

    def _look(self, features: np.ndarray, having: np.ndarray) -> _Look:
        """features: (K, d) as reported; having: (K,) bool, whose they are."""
        finite = having & np.isfinite(features).all(1)
        scores, suspicion = np.full(len(having), np.nan), 0.0
        if finite.any():
            poisons = self.config.assumed() * len(having) / self.clients
            found = spectre(features[finite], poisons, ks=self.config.ks(), flagged=self.config.flagged)
            scores[finite], suspicion = found.scores, found.suspicion
        return _Look(scores, suspicion, having & ~finite)


def _inspect(config: Config) -> Inspect:
    return by_label(config, config.layer, partial(_judge, config))


SPEC = filter_spec(
    "spectre", Config, _inspect, "hayase2021spectre", told=told, oracle=oracle,
    rule=lambda config, setting, clients: Filter(config, clients),
    presets={"default": Preset(config=Config()), "paper": Preset(config=Config(layer="spatial"))},
    baselines=("random-removal", "spectral-signatures"),
    variants=({"factor": 1.0}, {"factor": 0.5}, {"factor": 2.0}, {"labels": "all"}),
)  # fmt: skip
