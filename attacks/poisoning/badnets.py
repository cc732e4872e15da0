"""Control, upper bound: stamp the trigger on source images and give them the target label.

Threat: stronger than label-only; the attacker also changes the pixels of the rows it relabels.
What it shows: how far the same victim can be backdoored at the same budget when images may be
touched. Rows are drawn at random from the source class.
Source: [gu2017badnets].
"""

from __future__ import annotations

from dataclasses import replace

from attacks.poisoning._backdoor import LABEL_THREAT, Backdoor, backdoor_spec, poison, relabel, source_rows
from redteam.core.context import Context
from redteam.threats.poisoning import triggers
from redteam.threats.poisoning.artifact import Poison
from redteam.threats.poisoning.nouns import Trainable


def run(target: Trainable, config: Backdoor, ctx: Context) -> Poison:
    """Stamped images and flipped labels for `budget` random source rows."""
    rows = source_rows(target.train, config)
    chosen = ctx.rng("rows").permutation(rows)[: int(config.budget)]
    stamped = triggers.apply(config.spec(), target.train.images[chosen], chosen)
    labels = relabel(target.train, chosen, int(config.target_class))
    return poison(config, labels, indices=chosen, images=stamped)


SPEC = backdoor_spec(
    "badnets", run, "gu2017badnets", role="control",
    threat=replace(LABEL_THREAT, access=("training labels", "training images")),
)  # fmt: skip
