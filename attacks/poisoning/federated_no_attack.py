"""Control: all clients of the federation are honest; the trigger is stamped at test time all the same.

Threat: none. What it shows: the base rate at which an untouched model gives triggered images the target class,
and what a defence costs where there is nothing to defend against.
Source: [wang2022shadow], whose trade-off curves set accuracy beside attack success.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from attacks.poisoning._malicious import MaliciousClients, federated_spec, malicious, true_labels
from attacks.poisoning._malicious import resolve as resolve_clients
from redteam.core.context import Context
from redteam.threats.poisoning.federation.artifact import Clients
from redteam.threats.poisoning.federation.nouns import Federation


def resolve(config: MaliciousClients, target: Federation) -> MaliciousClients:
    """Class numbers as for any attack; no client is malicious whatever was asked."""
    some = resolve_clients(replace(config, budget=None, fraction=0.5, presence="drawn"), target)
    return replace(some, budget=0, fraction=config.fraction, presence=config.presence)


def run(target: Federation, config: MaliciousClients, ctx: Context) -> Clients:
    """Nobody, with the trigger that will be stamped at test time."""
    nobody = np.zeros(0, np.int64)
    labels = true_labels(target, nobody)
    return malicious(config, nobody, labels, np.zeros(labels.shape, bool), {})


SPEC = federated_spec(
    "federated-no-attack",
    run,
    "wang2022shadow",
    resolver=resolve,
    role="control",
    controls=(),
    deterministic=True,
)
