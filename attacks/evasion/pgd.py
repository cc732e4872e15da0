"""PGD: projected gradient ascent on the loss, from a random point of the ball around each image.

Threat: white-box. The attacker holds the network, the test images and their labels, and moves each image inside an
Linf or L2 ball. What it wants: every image misclassified. The last iterate of a run is judged, no earlier one.
Source: [madry2018towards]; the loss `kl` is that of [zhang2019trades], `margin` that of [carlini2017towards].
Preset `paper` is the protocol of DART's tests [wang2024dart]: 20 steps of 0.004 in a ball of 2/255.
"""

from __future__ import annotations

from attacks.evasion._attack import perturb, spec
from attacks.evasion._projected import PRESETS, Pgd, attempt
from redteam.core.context import Context
from redteam.threats.evasion.artifact import Perturbed
from redteam.threats.evasion.nouns import Attackable


def run(target: Attackable, config: Pgd, ctx: Context) -> Perturbed:
    """Attack each example that the network gets right."""
    return perturb(target, config, ctx, {"pgd": attempt(config)}, notes={"loss": config.loss})


SPEC = spec("pgd", run, "madry2018towards", PRESETS)
