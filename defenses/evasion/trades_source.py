"""TRADES(src): on the labelled source, CE of clean images plus lambda1 times the KL that perturbation causes.

Threat: evasion under domain shift. Each update perturbs source images to raise KL(p(x) || p(x')), then lowers
CE(x) + lambda1 KL. The target domain is not looked at.
Source: [zhang2019trades] (remembered), as run in the testbed of [wang2024dart], whose code was read and cannot
run this variant. Deviations: the default of lambda1 is the testbed's 1, where the paper of TRADES uses 6
(remembered); the KL is a mean over the rows of the batch, also of a short one.
"""

from __future__ import annotations

from functools import partial

from defenses.evasion._adaptation import KlWeight, Trades, adaptation_spec

SPEC = adaptation_spec("trades-source", KlWeight, partial(Trades, domain="source"), "zhang2019trades")
