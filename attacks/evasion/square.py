"""Square: random search with squares of colour, on the scores alone, by its authors' code.

Threat: black-box. The attacker puts images to the network and reads its scores; it holds the test images and their
labels, and no weights or gradients. What it wants: every image misclassified. Where it does better than the white-box
attacks, gradients are masked.
Needs the extra `evasion` (pyautoattack).
Source: [andriushchenko2020square].
"""

from __future__ import annotations

from dataclasses import dataclass

from attacks.evasion import _library as library
from attacks.evasion._attack import BLACK_BOX, Radius, perturb, spec
from redteam.core.config import knob
from redteam.core.context import Context
from redteam.threats.evasion.artifact import Perturbed
from redteam.threats.evasion.nouns import Attackable


@dataclass(frozen=True, slots=True, kw_only=True)
class Square(Radius):
    """The ball, and how often the network is asked."""

    queries: int = knob(5000, "images put to the network for each example, after the first", low=1)
    rescale: bool = knob(True, "stretch the schedule of sizes, made for 10,000 queries, to so many")


def run(target: Attackable, config: Square, ctx: Context) -> Perturbed:
    """Attack each example that the network gets right."""
    one = library.square(queries=config.queries, rescale=config.rescale)
    return perturb(target, config, ctx, {"square": one})


SPEC = spec(
    "square", run, "andriushchenko2020square",
    {"default": Square(queries=500), "paper": Square(queries=10_000), "smoke": Square(queries=40)},
    access=BLACK_BOX,
)  # fmt: skip
