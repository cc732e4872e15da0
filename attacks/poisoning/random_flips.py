"""Control: give the target label to randomly chosen images of the source class.

Threat: the label-only threat of FLIP, at the same budget. What it shows: how much of an attack's
success comes from merely confusing two classes. With all sources, rows of any class but the
target's are drawn. A budget above the number of source rows flips all of them and no more.
Source: [jha2023flip], its random baseline as remembered, not re-read.
"""

from __future__ import annotations

from attacks.poisoning._backdoor import Backdoor, backdoor_spec, poison, relabel, source_rows
from redteam.core.context import Context
from redteam.threats.poisoning.artifact import Poison
from redteam.threats.poisoning.nouns import Trainable


def run(target: Trainable, config: Backdoor, ctx: Context) -> Poison:
    """Labels with `budget` random source rows flipped to the target class."""
    rows = source_rows(target.train, config)
    chosen = ctx.rng("rows").permutation(rows)[: int(config.budget)]
    return poison(config, relabel(target.train, chosen, int(config.target_class)))


SPEC = backdoor_spec("random-flips", run, "jha2023flip", role="control")
