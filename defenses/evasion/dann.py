"""Natural DANN: features that a critic cannot tell apart by domain, with no thought of perturbations.

Threat: evasion under domain shift. The defender trains on labelled source images and unlabelled target images:
CE of the source minus lambda times the loss of a critic that tells source from target features.
It is what pseudo-labels of other defences start from, and the baseline that robust adaptation must beat: expect
accuracy on clean target images, and next to none under attack.
Source: [ganin2016dann] (remembered), as run in the testbed of [wang2024dart] (its released code read).
Deviations: see `defenses/evasion/_adaptation.py`.
"""

from __future__ import annotations

from typing import Any

from defenses.evasion._adaptation import ADAPTATION_THREAT, DivergenceWeight, presets
from redteam.core.context import Context
from redteam.core.types import Spec
from redteam.threats.evasion.adapt.algorithm import Dann


def run(target: Any, config: DivergenceWeight, ctx: Context) -> Any:
    """The classifier so trained."""
    return target.trained_by(Dann(weight=config.weight))


SPEC = Spec(
    name="dann", kind="defense", version="1", config=DivergenceWeight, run=run,
    presets=presets(DivergenceWeight()), source="ganin2016dann", threat=ADAPTATION_THREAT,
)  # fmt: skip
