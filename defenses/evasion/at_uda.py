"""AT+UDA: a DANN whose source images are adversarial ones.

Threat: evasion under domain shift. Each update perturbs source images to raise their CE, then lowers
CE(x_s') - lambda D(x_s', x_t), with D the loss of a critic of domains.
Source: a baseline of [wang2024dart] (its released code read).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from defenses.evasion._adaptation import (
    Adaptation,
    DivergenceWeight,
    adaptation_spec,
    divergence_from,
    joined,
    raise_ce,
)
from redteam.learn.perturb import ce
from redteam.threats.evasion.adapt.algorithm import Loss, Step, train_critic


class AtUda(Adaptation):
    """The algorithm."""

    config: DivergenceWeight
    name = "at-uda"

    def inner(self, step: Step) -> torch.Tensor:
        """Source images whose CE is high."""
        return raise_ce(step, step.xs, step.ys)

    def outer(self, step: Step, inner: torch.Tensor) -> Iterator[Loss]:
        """The critic on the features of both, then CE(x_s') - lambda D(x_s', x_t)."""
        nets = step.nets
        zs, zt = joined(nets.features, inner, step.xt)
        yield from train_critic(step, zs, zt)
        apart = divergence_from("dann", nets, zs)(zt)
        yield "model", ce(nets.head(zs), step.ys).mean(-1) + self.config.weight * apart


SPEC = adaptation_spec("at-uda", DivergenceWeight, AtUda, "wang2024dart")
