"""AT(tgt,pseudo): adversarial training on target images, with the labels a Natural DANN gives them.

Threat: evasion under domain shift. The Natural DANN is trained first and its labels stay as they are; then each
update perturbs target images to raise the CE with these labels, and lowers it. The source serves the DANN alone.
Source: [madry2018towards] (remembered), as run in the testbed of [wang2024dart] (its released code read).
Limits: no better than the DANN's labels, which are never corrected.
"""

from __future__ import annotations

from functools import partial

from defenses.evasion._adaptation import AdversarialTraining, NoKnobs, adaptation_spec

SPEC = adaptation_spec(
    "at-target", NoKnobs, partial(AdversarialTraining, domain="target"), "madry2018towards"
)
