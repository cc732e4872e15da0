"""Outsider defence: train on a random share of the rows.

Threat: poisoning. It exists to show that a defence wraps a target and is a target of the same kind.
Source: none; it is a placeholder with a known effect on the number of rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from redteam.core.config import check_ranges, knob
from redteam.core.types import Preset, Spec, ThreatModel
from redteam.learn.nouns import TrainingSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Knobs."""

    keep: float = knob(0.9, "share of the rows kept", above=0, high=1)

    def __post_init__(self) -> None:
        check_ranges(self)


class Dropped:
    """A target that fits on a share of what it is given."""

    kind = "trainable"

    def __init__(self, inner, config, ctx) -> None:
        self.inner, self.keep, self._rng = inner, config.keep, ctx.rng
        self.train, self.facts, self.config = inner.train, inner.facts, inner.config

    def fit(self, data, seeds, ctx):
        rows = self._rng("rows").permutation(len(data.targets))[: round(self.keep * len(data.targets))]
        return self.inner.fit(TrainingSet(data.images[rows], data.targets[rows]), seeds, ctx)

    def fingerprint(self):
        return {"drop": self.keep, **self.inner.fingerprint()}


SPEC = Spec(
    name="outsider-drop",
    kind="defense",
    version="1",
    config=Config,
    run=Dropped,
    presets={"default": Preset(config=Config())},
    source="none",
    threat=ThreatModel(
        kind="poisoning",
        target="trainable",
        access=("training data",),
        budget="none",
        knowledge=("none",),
        goal="a classifier without a backdoor",
    ),
    oracle=("nothing",),
)
