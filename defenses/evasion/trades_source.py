"""TRADES(src): on the labelled source, CE of clean images plus lambda1 times the KL that perturbation causes.

Threat: evasion under domain shift. Each update perturbs source images to raise KL(p(x) || p(x')), then lowers
CE(x) + lambda1 KL. The target domain is not looked at.
Source: [zhang2019trades] (remembered), as run in the testbed of [wang2024dart], whose code was read and cannot
run this variant. Deviations: the default of lambda1 is the testbed's 1, where the paper of TRADES uses 6
(remembered); the KL is a mean over the rows of the batch, also of a short one.
"""

from __future__ import annotations

from typing import Any

from defenses.evasion._adaptation import ADAPTATION_THREAT, KlWeight, Trades, presets
from redteam.core.context import Context
from redteam.core.types import Spec


def run(target: Any, config: KlWeight, ctx: Context) -> Any:
    """The classifier so trained."""
    return target.trained_by(Trades("trades-source", "source", config))


SPEC = Spec(
    name="trades-source", kind="defense", version="1", config=KlWeight, run=run, presets=presets(KlWeight()),
    source="zhang2019trades", threat=ADAPTATION_THREAT,
)  # fmt: skip
