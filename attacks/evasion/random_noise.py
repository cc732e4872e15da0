"""Control: random points of the ball, of which the worst for the network is kept.

Threat: black-box. As many points are drawn as the attack beside it takes steps, and the network's scores choose among
them. What it shows: how far chance alone gets; an attack that does no better finds nothing by its gradients.
Source: [madry2018towards], of which it is the random start without the ascent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from attacks.evasion._attack import BLACK_BOX, Radius, perturb, spec
from attacks.evasion._meter import Meter
from redteam.core.config import knob
from redteam.core.context import Context
from redteam.core.seeding import SeedPath
from redteam.learn.perturb import Ball, margin, uniform
from redteam.threats.evasion.artifact import Perturbed
from redteam.threats.evasion.nouns import Attackable


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise(Radius):
    """The ball, and how many points of it are tried."""

    steps: int = knob(20, "random points tried for each image: as many as the attack takes steps", low=1)


@torch.no_grad()
def worst(
    net: Meter, x: torch.Tensor, y: torch.Tensor, ball: Ball, seeds: SeedPath, points: int
) -> torch.Tensor:
    """Of so many random points of each ball, the one in which another class leads the label by most."""
    draw, out = uniform(seeds, x.device), x.clone()
    best = torch.full(y.shape, float("-inf"), device=x.device)
    for _ in range(points):
        moved = ball.start(x, draw)
        lead = margin(net(moved), y)
        better = lead > best
        out[better], best[better] = moved[better], lead[better]
    return out


def run(target: Attackable, config: Noise, ctx: Context) -> Perturbed:
    """Try random points on each example that the network gets right."""

    def attempt(net: Meter, x: torch.Tensor, y: torch.Tensor, ball: Ball, seeds: SeedPath) -> torch.Tensor:
        return worst(net, x, y, ball, seeds, config.steps)

    return perturb(target, config, ctx, {"random-noise": attempt})


SPEC = spec(
    "random-noise", run, "madry2018towards", {"default": Noise(), "paper": Noise(), "smoke": Noise(steps=5)},
    access=BLACK_BOX, role="control",
)  # fmt: skip
