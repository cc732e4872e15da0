"""APGD-T: PGD that chooses its own step, towards each of several wrong classes, on the targeted DLR loss.

Threat: white-box. The attacker holds the network, the test images and their labels, and moves each image inside an
Linf or L2 ball. What it wants: every image misclassified. The target classes are those of largest logit on the clean
image, at most one less than there are. Below four classes DLR is not defined: the margin stands in, and the
artifact's notes say so.
Source: [croce2020autoattack] Algorithm 1 and Eq. 7; departures stand in `attacks/evasion/_apgd.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from attacks.evasion import _apgd as apgd
from attacks.evasion._attack import Radius, perturb, spec
from redteam.core.config import knob
from redteam.core.context import Context
from redteam.threats.evasion.artifact import Perturbed
from redteam.threats.evasion.nouns import Attackable


@dataclass(frozen=True, slots=True, kw_only=True)
class ApgdT(Radius):
    """The ball, and how long is searched."""

    steps: int = knob(100, "steps of ascent towards each class", low=1)
    restarts: int = knob(1, "runs towards each class, each on what survived the ones before", low=1)
    targets: int = knob(9, "target classes, the likeliest first; at most all wrong ones", low=1)


def run(target: Attackable, config: ApgdT, ctx: Context) -> Perturbed:
    """Attack each example that the network gets right."""
    one = apgd.attempt(steps=config.steps, restarts=config.restarts, targets=config.targets)
    notes = apgd.notes(config.targets, len(target.classes))
    return perturb(target, config, ctx, {"apgd-t": one}, notes=notes)


SPEC = spec(
    "apgd-t", run, "croce2020autoattack",
    {"default": ApgdT(steps=20), "paper": ApgdT(), "smoke": ApgdT(steps=8, targets=2)},
)  # fmt: skip
