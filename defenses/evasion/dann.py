"""Natural DANN: features that a critic cannot tell apart by domain, with no thought of perturbations.

Threat: evasion under domain shift. The defender trains on labelled source images and unlabelled target images:
CE of the source minus lambda times the loss of a critic that tells source from target features.
It is what pseudo-labels of other defences start from, and the baseline that robust adaptation must beat: expect
accuracy on clean target images, and next to none under attack.
Source: [ganin2016dann] (remembered), as run in the testbed of [wang2024dart] (its released code read).
Deviations: see `defenses/evasion/_adaptation.py`.
"""

from __future__ import annotations

from defenses.evasion._adaptation import DivergenceWeight, adaptation_spec
from redteam.threats.evasion.adapt.algorithm import Dann

SPEC = adaptation_spec("dann", DivergenceWeight, lambda config: Dann(weight=config.weight), "ganin2016dann")
