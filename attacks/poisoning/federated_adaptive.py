"""Malicious clients that know the server filters them, and hide: by rate, by covariance, or by forged reports.

Threat: as `federated-badnets`, and the attacker chooses in which rounds its clients act and what they answer when
the server asks for mean representations and accuracies. It knows that a filter compares clients by these.
Strategies:
- `rate`: in each round a share `rate` of the malicious clients there acts, and the rest is honest, on clean data. A
  filter that removes as many as it was told then removes honest clients too, and has fewer bad ones to learn from.
- `covariance`: each malicious client stamps a share of its source rows of its own, drawn from U(0, 1), and keeps its
  genuine images of the target class, so that its mean representation lies anywhere between the honest clients' and
  the stamped images': the malicious means spread along a line and form no cluster.
- `forged`: it trains on poison and reports of its clean images and labels. Any filter of what clients report is
  blind to it; what it can be seen by is its update. This is the strongest, and no defence on reports is claimed to
  survive it.
Source: [wang2022shadow], whose adaptive attackers hide by rate or by covariance (its text was not at hand, so the
recipes here are this project's); forging reports is this project's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from attacks.poisoning._malicious import FEDERATED_UPDATE_THREAT, MaliciousClients, federated_spec, relabelled
from redteam.core.config import knob
from redteam.core.context import Context
from redteam.threats.poisoning.federation.artifact import Clients
from redteam.threats.poisoning.federation.nouns import Federation

Strategy = Literal["rate", "covariance", "forged"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(MaliciousClients):
    """The attack. `rate` is read by the strategy of that name alone."""

    strategy: Strategy = knob(
        "rate", "hide by acting seldom, by spreading like honest clients, or by forging what is reported"
    )
    rate: float = knob(
        0.5, "strategy=rate: share of the malicious clients of a round that act", above=0, high=1
    )


def run(target: Federation, config: Config, ctx: Context) -> Clients:
    """Clients that hide by the strategy of the config."""
    if config.strategy == "covariance":

        def shares(ids: np.ndarray) -> Sequence[float]:
            return [float(ctx.rng("share", int(client)).uniform()) for client in ids]

        return relabelled(target, config, ctx, stamp=True, shares=shares)
    conduct = {"rate": config.rate} if config.strategy == "rate" else {"report": "clean"}
    return relabelled(target, config, ctx, stamp=True, conduct=conduct)


# The filters of what clients report. Against other rules these strategies adapt to nothing.
_FILTERS = ("shadow", "spectre")


def adaptive(config: Config, defenses: Sequence[str]) -> bool:
    """Whether a filter of reports stands there, or nothing does."""
    return not defenses or any(name in _FILTERS for name in defenses)


SPEC = federated_spec(
    "federated-adaptive", run, "wang2022shadow", config=Config, adaptive=adaptive,
    threat=replace(FEDERATED_UPDATE_THREAT, access=(*FEDERATED_UPDATE_THREAT.access, "reports")),
    variants=({"strategy": "rate"}, {"strategy": "covariance"}, {"strategy": "forged"}),
)  # fmt: skip
