"""Outsider attack: give the first rows of the source class the target label.

Threat: label-only. It exists to show that an attack needs the core alone.
Source: [jha2023flip], as a degenerate case of its random control.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from redteam.core.config import check_ranges, knob
from redteam.core.types import Preset, Spec, ThreatModel
from redteam.threats.poisoning import triggers
from redteam.threats.poisoning.artifact import Poison


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Knobs."""

    budget: int = knob(5, "rows flipped", low=1)
    offset: int | None = knob(None, "source rows skipped; none: drawn", low=0)
    over: int = knob(0, "rows flipped beyond the budget: the scorer must refuse them", low=0)
    fail: bool = knob(False, "raise instead")

    def __post_init__(self) -> None:
        check_ranges(self)


def run(target, config, ctx) -> Poison:
    """The first `budget` source rows after an offset."""
    if config.fail:
        raise RuntimeError("told to fail")
    facts, labels = target.facts, target.train.labels.copy()
    rows = np.flatnonzero(labels == facts.source_class)
    offset = int(ctx.rng("offset").integers(20)) if config.offset is None else config.offset
    labels[rows[offset : offset + config.budget + config.over]] = facts.target_class
    return Poison(
        targets=labels, trigger=triggers.make("1xl"), source_class=facts.source_class,
        target_class=facts.target_class, budget=config.budget,
    )  # fmt: skip


SPEC = Spec(
    name="outsider-swap",
    kind="attack",
    version="1",
    config=Config,
    run=run,
    presets={"default": Preset(config=Config()), "smoke": Preset(config=replace(Config(), budget=3))},
    source="jha2023flip",
    threat=ThreatModel(
        kind="poisoning", target="trainable", access=("training labels",), budget="rows", knowledge=("labels",),
        goal="none in earnest",
    ),
)  # fmt: skip
