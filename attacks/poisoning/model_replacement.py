"""Malicious clients scale their updates so that the global model becomes theirs.

Threat: as `federated-badnets`, and the attacker also sends another update than its training gave. It knows how
many clients a round has and the server's learning rate.
Method: with K clients of equal weight, m of them malicious, and a server's learning rate of eta, each malicious
client multiplies its update by K / (eta m): where the honest updates cancel, the next model is the malicious
clients' mean. `bound` then projects the update onto a ball of so many times the median norm of the round's honest
updates, which the attacker is granted to know: what a server that clips norms would let pass.
Source: [bagdasaryan2020backdoor] Bagdasaryan, Veit, Hua, Estrin, Shmatikov: How To Backdoor Federated Learning,
remembered, not read: the factor n / eta is theirs, for one malicious client; the share among m, and the bound by the
median norm, are this project's.

Deviations: the loss has no term that evades a detector; a server's momentum is not made up for; with
`presence=drawn` the factor is for the expected number of malicious clients, so a round with more overshoots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from attacks.poisoning._malicious import (
    FEDERATED_UPDATE_THREAT,
    MaliciousClients,
    federated_spec,
    malicious_per_round,
    relabelled,
)
from attacks.poisoning._malicious import resolve as resolve_clients
from redteam.core.config import knob
from redteam.core.context import Context
from redteam.threats.poisoning.federation.artifact import Clients
from redteam.threats.poisoning.federation.nouns import Federation


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(MaliciousClients):
    """The attack. Defaults replace the model in one round."""

    scale: float | None = knob(
        None, "factor of a malicious update; none: clients of a round / (server_lr x malicious ones)", above=0
    )
    bound: float | None = knob(
        None,
        "largest norm of a malicious update, as a multiple of the honest median; none: no bound",
        above=0,
    )


def resolve(config: Config, target: Federation) -> Config:
    """Classes and counts as for any attack, and the factor that replaces the model."""
    config = resolve_clients(config, target)
    if config.scale is not None:
        return config
    federation = target.config
    acting = malicious_per_round(config, target)
    return replace(config, scale=federation.per_round / (federation.server_lr * acting))


def run(target: Federation, config: Config, ctx: Context) -> Clients:
    """Clients with the data of `federated-badnets` and updates scaled, then bounded."""
    conduct = {"scale": config.scale, "bound": config.bound}
    return relabelled(target, config, ctx, stamp=True, conduct=conduct)


def adaptive(config: Config, defenses: Sequence[str]) -> bool:
    """Whether a bound is kept because norms are clipped."""
    return config.bound is not None and "norm-clip" in defenses


SPEC = federated_spec(
    "model-replacement", run, "bagdasaryan2020backdoor", config=Config, resolver=resolve,
    threat=FEDERATED_UPDATE_THREAT, adaptive=adaptive,
)  # fmt: skip
