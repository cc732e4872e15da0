"""PGD made on the undefended network and replayed on whatever network is judged.

Threat: the attacker has a network of its own, trained as the undefended target is, the test images and their labels.
What it shows: whether a defence that resists PGD on itself falls to images made elsewhere, a sign of masked gradients.
Every image is attacked and kept, also those that the undefended network gets wrong.
Source: [madry2018towards], which judges its networks by transferred images too.
"""

from __future__ import annotations

from attacks.evasion._attack import perturb, spec
from attacks.evasion._projected import PRESETS, Pgd, attempt
from redteam.core.context import Context
from redteam.threats.evasion.artifact import Perturbed
from redteam.threats.evasion.nouns import Attackable


def run(target: Attackable, config: Pgd, ctx: Context) -> Perturbed:
    """Attack every example of the undefended target."""
    attempts = {"transfer-pgd": attempt(config)}
    return perturb(target, config, ctx, attempts, every=True, notes={"loss": config.loss})


SPEC = spec(
    "transfer-pgd", run, "madry2018towards", PRESETS, adaptive=False,
    access=("an undefended network of the same kind", "test images", "test labels"),
)  # fmt: skip
