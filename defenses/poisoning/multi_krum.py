"""Multi-Krum: average the updates that have the nearest neighbours.

Threat: poisoning, fewer than half of a round's clients malicious. With K updates and f of them assumed
malicious, an update's score is the sum of its squared distances to the K - f - 2 nearest others; the
K - f with the smallest scores are averaged by their weights, the others get weight 0. It is told f.
Source: [blanchard2017krum] (remembered; the guarantee is for K >= 2 f + 3 and for fewer than K - f - 2
averaged, the experiments average K - f).
Deviations. Beyond K = f + 2 one neighbour is looked at, and at least one update is kept, so that a wrong f
stops no run. Ties go to the client that was sampled first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from defenses.poisoning import _aggregation as shared
from redteam.core.config import knob
from redteam.core.types import Preset
from redteam.threats.poisoning.federation.nouns import Round, Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(shared.Assumed):
    """How many clients are assumed malicious, and how many updates are averaged."""

    kept: int | None = knob(None, "updates averaged; none: all but the assumed malicious; 1: Krum", low=1)


@dataclass(frozen=True)
class MultiKrum:
    """The rule. malicious: assumed of a round."""

    malicious: int
    kept: int | None = None

    def __call__(self, round: Round) -> Round:
        """The round with the updates of the largest scores left out."""
        rows = shared.present(round, SPEC.name)
        count = len(rows)
        if not count:
            return round
        scores = shared.krum_scores(shared.squared_distances(round.updates[rows]), self.malicious)
        kept = max(1, count - self.malicious) if self.kept is None else min(count, self.kept)
        factors = torch.zeros(count)
        factors[scores.argsort(stable=True)[:kept]] = 1
        return shared.reweighted(round, rows, factors, scores)


def make(config: Config, setting: Setting, clients: int) -> MultiKrum:
    """The rule of a federation of so many clients."""
    return MultiKrum(config.per_round(clients, setting), config.kept)


SPEC = shared.rule_spec(
    "multi-krum", Config, make, "blanchard2017krum", told=shared.told, oracle=shared.oracle,
    presets={"default": Preset(config=Config()), "krum": Preset(config=Config(kept=1))},
)  # fmt: skip
