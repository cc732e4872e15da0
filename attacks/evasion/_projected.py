"""Projected gradient descent as an attempt: its knobs, its losses and its restarts.

Source: [madry2018towards]; the losses `kl` [zhang2019trades] and `margin` [carlini2017towards].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from attacks.evasion._attack import Attempt, Radius
from attacks.evasion._meter import Meter
from redteam.core.config import knob
from redteam.core.errors import ConfigError
from redteam.core.seeding import SeedPath
from redteam.core.types import Preset
from redteam.learn.perturb import Ball, ce, kl, margin, pgd, uniform
from redteam.threats.evasion.adapt.config import PAPER


@dataclass(frozen=True, slots=True, kw_only=True)
class Pgd(Radius):
    """The ball, and the knobs of PGD."""

    loss: Literal["ce", "kl", "margin"] = knob(
        "ce", "what is maximised: cross-entropy, KL from the clean answer, or the largest other logit's lead"
    )
    steps: int = knob(20, "steps of gradient ascent", low=1)
    step: float | None = knob(
        None, "length of one at the main radius, scaled with it along the curve; none: 2.5 radius / steps", above=0
    )  # fmt: skip
    restarts: int = knob(1, "runs from different starts, each on what survived the ones before", low=1)
    random_start: bool = knob(True, "start at a random point of the ball")

    def __post_init__(self) -> None:
        Radius.__post_init__(self)
        if self.loss == "kl" and not self.random_start:
            raise ConfigError("loss: 'kl' has no gradient at the clean image; give random_start=true")
        if self.restarts > 1 and not self.random_start:
            raise ConfigError(
                f"restarts: {self.restarts} runs from one start are one; give random_start=true"
            )

    def length(self, radius: float) -> float:
        """The length of a step in a ball of this radius."""
        if self.step is None:
            return 2.5 * radius / self.steps
        main = float(self.eps or 0.0)
        return self.step * radius / main if main else self.step


def attempt(config: Pgd) -> Attempt:
    """PGD: the last iterate of the first run whose last iterate fools, or else of the last run.

    Success at an earlier iterate does not count: this is PGD as in [madry2018towards], and `apgd` the stronger.
    """

    def run(net: Meter, x: torch.Tensor, y: torch.Tensor, ball: Ball, seeds: SeedPath) -> torch.Tensor:
        draw = uniform(seeds, x.device) if config.random_start else None
        out, left = x.clone(), torch.arange(len(x))
        for restart in range(config.restarts):
            net.rows = left
            at = left.to(x.device)
            reference, labels = _reference(config, net, x[at]), y[at]

            def loss(
                moved: torch.Tensor, reference: torch.Tensor = reference, labels: torch.Tensor = labels
            ) -> torch.Tensor:
                logits = net(moved)
                return {"ce": ce, "margin": margin}[config.loss](logits, labels) if config.loss != "kl" else kl(
                    logits, reference
                )  # fmt: skip

            out[at] = pgd(loss, x[at], ball, steps=config.steps, step=config.length(ball.eps), draw=draw)
            if restart + 1 < config.restarts:
                with torch.no_grad():
                    left = left[(net(out[at]).argmax(-1) == labels).cpu()]
                if not len(left):
                    break
        return out

    return run


@torch.no_grad()
def _reference(config: Pgd, net: Meter, x: torch.Tensor) -> torch.Tensor:
    """The clean logits where the loss is measured from them."""
    return net(x) if config.loss == "kl" else x.new_empty(0)


# The protocol of DART's tests: 20 steps of 0.004 in a ball of 2/255, on its own classifier.
PRESETS = {"default": Pgd(), "smoke": Pgd(steps=5), "paper": Preset(config=Pgd(step=0.004), target=PAPER)}
