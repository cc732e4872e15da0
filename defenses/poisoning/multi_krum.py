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

from defenses.poisoning._aggregation import (
    FEDERATED_THREAT,
    Assumed,
    krum_scores,
    oracle,
    present,
    reweighted,
    squared_distances,
    told,
)
from redteam.core.config import knob, to_json
from redteam.core.context import Context
from redteam.core.types import Preset, Spec
from redteam.threats.poisoning.federation.nouns import Federation, Round, Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Assumed):
    """How many clients are assumed malicious, and how many updates are averaged."""

    kept: int | None = knob(None, "updates averaged; none: all but the assumed malicious; 1: Krum", low=1)


@dataclass(frozen=True)
class MultiKrum:
    """The rule. malicious: assumed of a round."""

    malicious: int
    kept: int | None = None

    def __call__(self, round: Round) -> Round:
        """The round with the updates of the largest scores left out."""
        rows = present(round, SPEC.name)
        count = len(rows)
        if not count:
            return round
        scores = krum_scores(squared_distances(round.updates[rows]), self.malicious)
        kept = max(1, count - self.malicious) if self.kept is None else min(count, self.kept)
        factors = torch.zeros(count)
        factors[scores.argsort(stable=True)[:kept]] = 1
        return reweighted(round, rows, factors, scores)


def run(target: Federation, config: Config, ctx: Context) -> Federation:
    """The federation behind the rule."""
    clients = target.config.clients

    def make(setting: Setting) -> MultiKrum:
        return MultiKrum(config.per_round(clients, setting), config.kept)

    return target.behind(f"{SPEC.name} {SPEC.version}", to_json(config), make)


SPEC = Spec(
    name="multi-krum", kind="defense", version="1", config=Config, run=run,
    presets={"default": Preset(config=Config()), "krum": Preset(config=Config(kept=1))},
    source="blanchard2017krum", threat=FEDERATED_THREAT, told=told, oracle=oracle,
)  # fmt: skip
