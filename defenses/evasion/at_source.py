"""AT(src): adversarial training on the labelled source; the target domain is not looked at.

Threat: evasion under domain shift. Each update perturbs the source images to raise their CE, then lowers it.
Source: [madry2018towards] (remembered), as run in the testbed of [wang2024dart] (its released code read).
Limits: robustness need not carry over to the target; and from random weights at a large radius training can
collapse to one answer (seen at eps 0.1), which the target's `eps_ramp` is there to prevent.
"""

from __future__ import annotations

from typing import Any

from defenses.evasion._adaptation import ADAPTATION_THREAT, AdversarialTraining, NoKnobs, presets
from redteam.core.context import Context
from redteam.core.types import Spec


def run(target: Any, config: NoKnobs, ctx: Context) -> Any:
    """The classifier so trained."""
    return target.trained_by(AdversarialTraining("at-source", "source"))


SPEC = Spec(
    name="at-source", kind="defense", version="1", config=NoKnobs, run=run, presets=presets(NoKnobs()),
    source="madry2018towards", threat=ADAPTATION_THREAT,
)  # fmt: skip
