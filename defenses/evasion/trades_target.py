"""TRADES(tgt,pseudo): TRADES on target images, with the labels a Natural DANN gives them.

Threat: evasion under domain shift. The Natural DANN is trained first and its labels stay as they are; then each
update perturbs target images to raise KL(p(x) || p(x')), and lowers CE(x) + lambda1 KL. Only the CE needs labels.
Source: [zhang2019trades] (remembered), as run in the testbed of [wang2024dart], whose code was read and cannot
run this variant. Deviations: those of `trades-source`.
"""

from __future__ import annotations

from functools import partial

from defenses.evasion._adaptation import KlWeight, Trades, adaptation_spec

SPEC = adaptation_spec("trades-target", KlWeight, partial(Trades, domain="target"), "zhang2019trades")
