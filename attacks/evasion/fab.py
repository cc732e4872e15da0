"""FAB-T: the nearest image across the boundary to each of several wrong classes, by its authors' code.

Threat: white-box. The attacker holds the network, the test images and their labels. What it wants: every image
misclassified. It looks for the smallest change; one that is longer than the radius counts as none. The target classes
are those of largest logit on the clean image, at most one less than there are.
Needs the extra `evasion` (pyautoattack).
Source: [croce2020fab]; the targeted form is that of [croce2020autoattack].
"""

from __future__ import annotations

from dataclasses import dataclass

from attacks.evasion import _library as library
from attacks.evasion._attack import Radius, perturb, spec
from redteam.core.config import knob
from redteam.core.context import Context
from redteam.threats.evasion.artifact import Perturbed
from redteam.threats.evasion.nouns import Attackable


@dataclass(frozen=True, slots=True, kw_only=True)
class Fab(Radius):
    """The ball, and how long is searched."""

    steps: int = knob(100, "steps towards each class", low=1)
    restarts: int = knob(1, "runs towards each class; all but the first from a random start", low=1)
    targets: int = knob(9, "target classes, the likeliest first; at most all wrong ones", low=1)


def run(target: Attackable, config: Fab, ctx: Context) -> Perturbed:
    """Attack each example that the network gets right."""
    targets = min(config.targets, len(target.classes) - 1)
    one = library.fab(steps=config.steps, restarts=config.restarts, targets=targets)
    return perturb(target, config, ctx, {"fab": one}, notes={"targets": targets})


SPEC = spec(
    "fab", run, "croce2020fab", {"default": Fab(steps=20), "paper": Fab(), "smoke": Fab(steps=5, targets=2)}
)
