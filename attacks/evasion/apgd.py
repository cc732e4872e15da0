"""APGD on cross-entropy (APGD-CE): PGD with momentum that chooses its own step.

Threat: white-box. The attacker holds the network, the test images and their labels, and moves each image inside an
Linf or L2 ball. What it wants: every image misclassified. The first iterate that fools the network is kept.
Source: [croce2020autoattack] Algorithm 1; departures stand in `attacks/evasion/_apgd.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from attacks.evasion import _apgd as shared
from attacks.evasion._attack import Radius, perturb, spec
from redteam.core.config import knob
from redteam.core.context import Context
from redteam.threats.evasion.artifact import Perturbed
from redteam.threats.evasion.nouns import Attackable


@dataclass(frozen=True, slots=True, kw_only=True)
class Apgd(Radius):
    """The ball, and how long is searched."""

    steps: int = knob(100, "steps of ascent", low=1)
    restarts: int = knob(1, "runs from different starts, each on what survived the ones before", low=1)


def run(target: Attackable, config: Apgd, ctx: Context) -> Perturbed:
    """Attack each example that the network gets right."""
    attempts = {"apgd-ce": shared.attempt(steps=config.steps, restarts=config.restarts)}
    return perturb(target, config, ctx, attempts)


SPEC = spec(
    "apgd", run, "croce2020autoattack", {"default": Apgd(steps=50), "paper": Apgd(), "smoke": Apgd(steps=8)}
)
