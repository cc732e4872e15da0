"""Malicious clients of a federation stamp images of theirs and give them the target label.

Threat: the attacker holds some clients and their data; it changes labels and pixels of a share of their rows and
trains like everybody else (`epochs` times as long, if asked). At test time it stamps the trigger on images of any
other class, which the global model then gives the target class.
What it shows: backdoor leakage, the attack success that builds up over rounds behind a filter that lets some
malicious clients pass.
Source: [gu2017badnets] for the data; [wang2022shadow], its released code, for the clients: there a malicious client
stamps a tenth of its images and trains four times as long (`stamped=0.11`, `epochs=4` come closest).

Deviations from that code: a malicious client's rows of the target class stay, with their true labels; the trigger is
a corner patch of 3x3 where that one is a grey square of 5x5.
"""

from __future__ import annotations

from attacks.poisoning._malicious import MaliciousClients, federated_spec, relabelled
from redteam.core.context import Context
from redteam.threats.poisoning.federation.artifact import Clients
from redteam.threats.poisoning.federation.nouns import Federation


def run(target: Federation, config: MaliciousClients, ctx: Context) -> Clients:
    """Stamped images and flipped labels for a share of each malicious client's source rows."""
    return relabelled(target, config, ctx, stamp=True)


SPEC = federated_spec("federated-badnets", run, "gu2017badnets")
