"""Control: leave out as many rows (clients) as the filters do, drawn at random.

Threat: poisoning. What it shows: how much of a filter's effect comes from training on less data. It is
told as much as the filters, and removes 1.5 for each poison assumed: of the told label's rows, or of
all rows; in a federation, of each round's clients.
Source: none needed; [hayase2021spectre] removes 1.5 for each poison assumed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from defenses.poisoning._aggregation import present
from defenses.poisoning._filtering import Inspect, filter_spec, given_labels
from defenses.poisoning._told import Told, oracle, per_round, told
from redteam.core.context import Context
from redteam.learn.nouns import TrainingSet
from redteam.threats.poisoning.federation.nouns import Round, Setting
from redteam.threats.poisoning.filtering import Verdicts
from redteam.threats.poisoning.nouns import Trainable


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Told):
    """Knobs. With labels=suspected rows of all labels are drawn."""


def _inspect(config: Config) -> Inspect:
    def inspect(target: Trainable, data: TrainingSet, seed: int, ctx: Context) -> Verdicts:
        labels = given_labels(data)
        rows = np.arange(len(labels))
        if config.labels == "known":
            rows = np.flatnonzero(labels == config.label)
        count = min(len(rows), round(config.flagged * config.assumed()))
        removed = np.zeros(len(labels), bool)
        removed[ctx.rng("rows").permutation(rows)[:count]] = True
        return Verdicts(removed, np.full(len(labels), np.nan, np.float32), 0)

    return inspect


@dataclass(frozen=True)
class _Drawn:
    """The rule of a federation: so many clients of each round, at random."""

    count: int

    def __call__(self, round: Round) -> Round:
        """Weights with `count` of the clients that still have any set to zero."""
        there = present(round, SPEC.name)
        order = torch.randperm(len(there), generator=round.generator)[: self.count]
        weights = round.weights.clone()
        weights[there[order.to(there.device)]] = 0
        return replace(round, weights=weights)


def _rule(config: Config, setting: Setting, clients: int) -> _Drawn:
    return _Drawn(per_round(config, clients, setting.per_round))


SPEC = filter_spec(
    "random-removal", Config, _inspect, "hayase2021spectre", rule=_rule, role="control", baselines=(),
    told=told, oracle=oracle,
)  # fmt: skip
