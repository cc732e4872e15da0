"""Noise: Gaussian noise on each round's aggregate, also known as weak differential privacy.

Threat: poisoning, backdoors that sit in small changes of few parameters. Each coordinate of the aggregate
gets independent N(0, s^2) before the server's learning rate and momentum. s is `sd` times the median length
of the round's updates (`scale=median`, as [nguyen2022flame] sets it), or `sd` itself (`scale=absolute`).
It bounds no update: put `norm-clip` before it. Nothing that it does amounts to a privacy guarantee.
Source: [sun2019backdoor], weak differential privacy; its s = 0.025 (remembered) is the preset `weak-dp`.
The default 0.001 is the factor of [nguyen2022flame] for images (remembered).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from defenses.poisoning._aggregation import gaussian, median, norms, rule_spec
from redteam.core.config import Checked, knob
from redteam.core.types import Preset
from redteam.threats.poisoning.federation.nouns import Round, aggregated


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Checked):
    """How much noise."""

    sd: float = knob(0.001, "standard deviation of the noise of each coordinate", low=0)
    scale: Literal["median", "absolute"] = knob(
        "median", "median: sd counts median lengths of the round's updates; absolute: it is taken as it is"
    )


@dataclass(frozen=True)
class Noise:
    """The rule."""

    config: Config

    def __call__(self, round: Round) -> Round:
        """The round with noise on its aggregate; as it came where no client has weight. Note `noise-sd`."""
        rows = round.weights > 0
        if not rows.any():
            return round
        sd = self.config.sd
        if self.config.scale == "median":
            sd *= median(norms(round.updates[rows.to(round.updates.device)]))
        mean = aggregated(round)
        return replace(
            round, mean=mean + gaussian(mean, sd, round.generator), notes=(*round.notes, ("noise-sd", sd))
        )  # fmt: skip


SPEC = rule_spec(
    "noise", Config, lambda config, *_: Noise(config), "sun2019backdoor",
    presets={
        "default": Preset(config=Config()),
        "weak-dp": Preset(config=Config(sd=0.025, scale="absolute")),
    },
)  # fmt: skip
