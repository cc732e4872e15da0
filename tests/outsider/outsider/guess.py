"""Outsider guess: ask a vault about random numbers until one is right or the tries are spent.

Threat: black-box. It exists to show that an attack on a threat from outside needs nothing of the suite's own threats.
Source: none; the success of t tries without repeats among k numbers is t/k.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from outsider.vault.nouns import BELOW, Guesses
from redteam.core.config import check_ranges, knob
from redteam.core.types import Preset, Spec, ThreatModel

THREAT = ThreatModel(
    kind="vault", target="vault", access=("answers",), budget="questions about each secret",
    knowledge=("the range",), goal="the secret",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Knobs."""

    tries: int = knob(5, "questions about each secret, at most", low=0, high=BELOW)
    beyond: int = knob(0, "questions beyond the budget: the scorer must refuse them", low=0)

    def __post_init__(self) -> None:
        check_ranges(self)


def run(target, config, ctx) -> Guesses:
    """(n,) guesses: the one that was right, else the first number that was not asked."""
    guesses, tries = np.zeros(len(target), np.int64), np.zeros(len(target), np.int64)
    for index in range(len(target)):
        order = ctx.rng("order", index).permutation(BELOW)
        for guess in order[: config.tries + config.beyond]:
            tries[index] += 1
            if target.ask(index, int(guess)):
                break
        else:
            guess = order[min(config.tries, BELOW - 1)]
        guesses[index] = guess
    return Guesses(guesses, tries)


SPEC = Spec(
    name="outsider-guess", kind="attack", version="1", config=Config, run=run, source="none", threat=THREAT,
    presets={"default": Preset(config=Config())}, controls=("outsider-blind",),
)  # fmt: skip
