"""RFA: the geometric median of the updates in place of their mean.

Threat: poisoning, malicious clients with less than half of the weight. The aggregate is the point with the
least weighted sum of distances to the updates, found by smoothed Weiszfeld passes. No client is removed;
each counts by its weight over its distance, and that distance is its score.
Source: [pillutla2022rfa] (remembered: 3 passes, distances below 1e-6 count as 1e-6).
Deviations. Three passes from the mean do not reach the median when many updates lie far away: with 45 % of
them each pass takes about a fifth off the way. The default goes on until it is there; the preset `paper`
makes three passes. The paper's secure aggregation is not simulated: it changes who sees what, not the result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from defenses.poisoning._aggregation import geometric_median, norms, present, reweighted, rule_spec
from redteam.core.config import Checked, knob
from redteam.core.types import Preset
from redteam.threats.poisoning.federation.nouns import Round


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Checked):
    """How exactly the median is found."""

    passes: int = knob(200, "Weiszfeld passes at most", low=1)
    floor: float = knob(1e-6, "smoothing: distances below it count as this", above=0)
    tolerance: float = knob(
        1e-5, "stop when a pass moves the median by less, in median distances; 0: make all passes", low=0
    )


@dataclass(frozen=True)
class GeometricMedian:
    """The rule."""

    config: Config

    def __call__(self, round: Round) -> Round:
        """The round with its aggregate made. Note `passes`."""
        rows = present(round, SPEC.name)
        if not len(rows):
            return round
        updates, weights = round.updates[rows], round.weights[rows.to(round.weights.device)]
        mean, share, done = geometric_median(
            updates, weights, passes=self.config.passes, floor=self.config.floor, tolerance=self.config.tolerance
        )  # fmt: skip
        # Weights become the shares of the weighted mean that the median is: what each client got.
        out = reweighted(round, rows, share.cpu() / weights.cpu(), norms(updates - mean))
        return replace(out, mean=mean, notes=(*round.notes, ("passes", float(done))))


SPEC = rule_spec(
    "rfa", Config, lambda config, *_: GeometricMedian(config), "pillutla2022rfa",
    presets={"default": Preset(config=Config()), "paper": Preset(config=Config(passes=3, tolerance=0.0))},
)  # fmt: skip
