"""Trimmed mean: in each coordinate, the mean without the largest and the smallest values.

Threat: poisoning, fewer than half of a round's clients malicious. With f of a round's clients assumed
malicious, the f smallest and the f largest values of each coordinate are left out. No client is
removed as such, and none has a score. It is told f.
Source: [yin2018trimmed] (remembered).
Deviations. f is at most such that one value is left (two of an even number: the coordinatewise median).
Clients with weight 0 are left out; other weights do not count, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from defenses.poisoning._aggregation import Assumed, oracle, present, rule_spec, told, trimmed_mean
from redteam.threats.poisoning.federation.nouns import Round, Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Assumed):
    """How many clients are assumed malicious."""


@dataclass(frozen=True)
class TrimmedMean:
    """The rule. trim: values left out at either end."""

    trim: int

    def __call__(self, round: Round) -> Round:
        """The round with its aggregate made."""
        rows = present(round, SPEC.name)
        if not len(rows):
            return round
        return replace(round, mean=trimmed_mean(round.updates[rows], min(self.trim, (len(rows) - 1) // 2)))


def make(config: Config, setting: Setting, clients: int) -> TrimmedMean:
    """The rule of a federation of so many clients."""
    return TrimmedMean(config.per_round(clients, setting))


SPEC = rule_spec("trimmed-mean", Config, make, "yin2018trimmed", told=told, oracle=oracle)
