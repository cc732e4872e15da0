"""Control: the test images as they are, asked a second time.

Threat: none. What it shows: the accuracy that every attack is read against. An image counts as broken only where the
network changes its answer by itself, which a deterministic one does not.
Source: [madry2018towards], whose tables give natural accuracy beside.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from attacks.evasion._attack import Radius, perturb, spec
from attacks.evasion._meter import Meter
from redteam.core.context import Context
from redteam.core.seeding import SeedPath
from redteam.learn.perturb import Ball
from redteam.threats.evasion.artifact import Perturbed
from redteam.threats.evasion.nouns import Attackable


@dataclass(frozen=True, slots=True, kw_only=True)
class Still(Radius):
    """The ball, of which only the centre is used."""


def same(net: Meter, x: torch.Tensor, y: torch.Tensor, ball: Ball, seeds: SeedPath) -> torch.Tensor:
    """The images themselves."""
    return x


def run(target: Attackable, config: Still, ctx: Context) -> Perturbed:
    """Every image as it was."""
    return perturb(target, config, ctx, {"no-perturbation": same})


SPEC = spec(
    "no-perturbation", run, "madry2018towards", {"default": Still(), "paper": Still(), "smoke": Still()},
    access=("test images",), role="control",
)  # fmt: skip
