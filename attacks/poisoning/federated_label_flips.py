"""Control: malicious clients give random source rows of theirs the target label, and touch no image.

Threat: labels of the malicious clients' rows. What it shows: what flipping the labels that `federated-badnets`
flips does without the trigger. The trigger is stamped at test time all the same, so a success that this reaches
too is confusion of classes, not a backdoor.
Source: [jha2023flip], whose abstract sets label poisoning apart from backdoors that need images; random flips are
the control.
"""

from __future__ import annotations

from attacks.poisoning._malicious import FEDERATED_LABEL_THREAT, MaliciousClients, federated_spec, relabelled
from redteam.core.context import Context
from redteam.threats.poisoning.federation.artifact import Clients
from redteam.threats.poisoning.federation.nouns import Federation


def run(target: Federation, config: MaliciousClients, ctx: Context) -> Clients:
    """Flipped labels for a share of each malicious client's source rows."""
    return relabelled(target, config, ctx, stamp=False)


SPEC = federated_spec(
    "federated-label-flips", run, "jha2023flip", role="control", controls=("federated-no-attack",),
    threat=FEDERATED_LABEL_THREAT,
)  # fmt: skip
