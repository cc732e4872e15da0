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

from defenses.poisoning._aggregation import FEDERATED_THREAT, Assumed, oracle, present, told, trimmed_mean
from redteam.core.config import to_json
from redteam.core.context import Context
from redteam.core.types import Spec
from redteam.threats.poisoning.federation.nouns import Federation, Round, Setting


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


def run(target: Federation, config: Config, ctx: Context) -> Federation:
    """The federation behind the rule."""
    clients = target.config.clients

    def make(setting: Setting) -> TrimmedMean:
        return TrimmedMean(config.per_round(clients, setting))

    return target.behind(f"{SPEC.name} {SPEC.version}", to_json(config), make)


SPEC = Spec(
    name="trimmed-mean", kind="defense", version="1", config=Config, run=run,
    source="yin2018trimmed", threat=FEDERATED_THREAT,
    told=told, oracle=oracle,
)  # fmt: skip
