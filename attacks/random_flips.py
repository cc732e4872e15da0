"""Control: give the target label to randomly chosen images of the source class.

Threat: the label-only threat of FLIP, at the same budget. What it shows: how much of an attack's
success comes from merely confusing two classes. With all sources, rows of any class but the
target's are drawn. A budget above the number of source rows flips all of them and no more.
Source: [jha2023flip] section 4, the random baseline.
"""

from __future__ import annotations

from attacks._shared.backdoor import LABEL_THREAT, Backdoor, poison, relabel, resolve, source_rows
from redteam.artifacts import Poison
from redteam.context import Context
from redteam.types import Preset, Spec, Trainable

Config = Backdoor
DEFAULT = PAPER = SMOKE = Preset(config=Config())


def run(target: Trainable, config: Config, ctx: Context) -> Poison:
    """Labels with `budget` random source rows flipped to the target class."""
    rows = source_rows(target.train, config)
    chosen = ctx.rng("rows").permutation(rows)[: int(config.budget)]
    return poison(config, relabel(target.train, chosen, int(config.target_class)))


SPEC = Spec(
    name="random-flips",
    kind="attack",
    role="control",
    version="1",
    config=Config,
    run=run,
    resolve=resolve,
    presets={"default": DEFAULT, "paper": PAPER, "smoke": SMOKE},
    source="jha2023flip",
    threat=LABEL_THREAT,
)
