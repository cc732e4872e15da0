"""TRADES(tgt,pseudo): TRADES on target images, with the labels a Natural DANN gives them.

Threat: evasion under domain shift. The Natural DANN is trained first and its labels stay as they are; then each
update perturbs target images to raise KL(p(x) || p(x')), and lowers CE(x) + lambda1 KL. Only the CE needs labels.
Source: [zhang2019trades] (remembered), as run in the testbed of [wang2024dart], whose code was read and cannot
run this variant. Deviations: those of `trades-source`.
"""

from __future__ import annotations

from typing import Any

from defenses.evasion._adaptation import ADAPTATION_THREAT, KlWeight, Trades, presets
from redteam.core.context import Context
from redteam.core.types import Spec


def run(target: Any, config: KlWeight, ctx: Context) -> Any:
    """The classifier so trained."""
    return target.trained_by(Trades("trades-target", "target", config))


SPEC = Spec(
    name="trades-target", kind="defense", version="1", config=KlWeight, run=run, presets=presets(KlWeight()),
    source="zhang2019trades", threat=ADAPTATION_THREAT,
)  # fmt: skip
