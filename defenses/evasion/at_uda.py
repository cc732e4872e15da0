"""AT+UDA: a DANN whose source images are adversarial ones.

Threat: evasion under domain shift. Each update perturbs source images to raise their CE, then lowers
CE(x_s') - lambda D(x_s', x_t), with D the loss of a critic of domains.
Source: a baseline of [wang2024dart] (its released code read).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from defenses.evasion._adaptation import (
    ADAPTATION_THREAT,
    DivergenceWeight,
    divergence_from,
    joined,
    presets,
    raise_ce,
)
from redteam.core.config import to_json
from redteam.core.context import Context
from redteam.core.types import Spec
from redteam.learn.perturb import ce
from redteam.threats.evasion.adapt.algorithm import Loss, Pseudo, Refresh, Step, train_critic


@dataclass(frozen=True)
class AtUda:
    """The algorithm."""

    config: DivergenceWeight
    name: str = "at-uda"
    version: str = "1"
    groups: tuple[str, ...] = ("model", "critic")
    adapts: bool = True
    pseudo: Pseudo = "none"
    refresh: Refresh = "latest"

    @property
    def settings(self) -> Mapping[str, Any]:
        """Its weight."""
        return to_json(self.config)

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


def run(target: Any, config: DivergenceWeight, ctx: Context) -> Any:
    """The classifier so trained."""
    return target.trained_by(AtUda(config))


SPEC = Spec(
    name="at-uda", kind="defense", version="1", config=DivergenceWeight, run=run,
    presets=presets(DivergenceWeight()), source="wang2024dart", threat=ADAPTATION_THREAT,
)  # fmt: skip
