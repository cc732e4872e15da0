"""AT(tgt,pseudo): adversarial training on target images, with the labels a Natural DANN gives them.

Threat: evasion under domain shift. The Natural DANN is trained first and its labels stay as they are; then each
update perturbs target images to raise the CE with these labels, and lowers it. The source serves the DANN alone.
Source: [madry2018towards] (remembered), as run in the testbed of [wang2024dart] (its released code read).
Limits: no better than the DANN's labels, which are never corrected.
"""

from __future__ import annotations

from typing import Any

from defenses.evasion._adaptation import ADAPTATION_THREAT, AdversarialTraining, NoKnobs, presets
from redteam.core.context import Context
from redteam.core.types import Spec


def run(target: Any, config: NoKnobs, ctx: Context) -> Any:
    """The classifier so trained."""
    return target.trained_by(AdversarialTraining("at-target", "target"))


SPEC = Spec(
    name="at-target", kind="defense", version="1", config=NoKnobs, run=run, presets=presets(NoKnobs()),
    source="madry2018towards", threat=ADAPTATION_THREAT,
)  # fmt: skip
