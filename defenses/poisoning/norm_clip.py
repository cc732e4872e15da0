"""Norm clipping: no client's update is longer than a bound.

Threat: poisoning, malicious clients that scale their update (model replacement). An update u becomes
u min(1, M / |u|); its direction, and a backdoor that fits in M, stays. Nobody is removed. Where no
`norm` is given, M is the median length of the round's updates, so that half of them are clipped.
Source: [sun2019backdoor] (remembered); its fixed bounds depend on the model, so the default is the median,
as in [nguyen2022flame].
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from defenses.poisoning._aggregation import clipped, median, norms, present, rule_spec, with_rows
from redteam.core.config import Checked, knob
from redteam.threats.poisoning.federation.nouns import Round


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Checked):
    """The bound."""

    norm: float | None = knob(None, "longest update (L2); none: the median of the round's lengths", above=0)


@dataclass(frozen=True)
class NormClip:
    """The rule."""

    norm: float | None

    def __call__(self, round: Round) -> Round:
        """The round with its updates clipped. Note `clip-norm`: the bound."""
        rows = present(round, SPEC.name)
        if not len(rows):
            return round
        updates = round.updates[rows]
        bound = median(norms(updates)) if self.norm is None else self.norm
        out = with_rows(round, rows, clipped(updates, bound))
        return replace(out, notes=(*round.notes, ("clip-norm", bound)))


SPEC = rule_spec("norm-clip", Config, lambda config, *_: NormClip(config.norm), "sun2019backdoor")
