"""AT(src): adversarial training on the labelled source; the target domain is not looked at.

Threat: evasion under domain shift. Each update perturbs the source images to raise their CE, then lowers it.
Source: [madry2018towards] (remembered), as run in the testbed of [wang2024dart] (its released code read).
Limits: robustness need not carry over to the target; and from random weights at a large radius training can
collapse to one answer (seen at eps 0.1), which the target's `eps_ramp` is there to prevent.
"""

from __future__ import annotations

from functools import partial

from defenses.evasion._adaptation import AdversarialTraining, NoKnobs, adaptation_spec

SPEC = adaptation_spec(
    "at-source", NoKnobs, partial(AdversarialTraining, domain="source"), "madry2018towards"
)
