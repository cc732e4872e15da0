"""FoolsGold: clients whose updates have pointed the same way over the rounds count less.

Threat: poisoning, many malicious clients (sybils) with one goal, while honest ones differ. For each client
the sum of its updates so far is kept. Of the clients of a round: v_i is the largest cosine of i's sum with
another's, 0 at least; where v_i < v_j, their cosine is scaled by v_i / v_j (pardoning: the honest client that
merely resembles a sybil is let off); a_i = 1 minus the largest that is left; a is divided by its maximum and
goes through ln(a / (1 - a)) + 1/2, cut to [0, 1]. That factor multiplies the client's weight. It is told nothing.
Score: the largest cosine that is left after pardoning.
Source: [fung2020foolsgold], algorithm 1, with the rescaling and the cut of its released code (remembered).
Deviations. Similarity is taken over all parameters, not those that matter most to the last layer. The
aggregate is the weighted mean, not the weighted sum. Where all look like sybils, nothing is kept.
Memory: one float32 update for each client that was ever sampled.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from defenses.poisoning._aggregation import cosines, present, reweighted, rule_spec
from redteam.core.config import Checked, knob
from redteam.threats.poisoning.federation.nouns import Round

# Sums stay finite, whatever is sent.
_LARGEST = 1e37


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Checked):
    """What is compared."""

    history: bool = knob(True, "compare sums of a client's updates so far; false: updates of the round")
    confidence: float = knob(1.0, "factor before the logit: larger cuts sharper", above=0)


def learning_rates(cosine: torch.Tensor, confidence: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors in [0, 1] and scores, each (K,), from (K, K) cosine similarities. Algorithm 1 of the source."""
    others = cosine.clone().fill_diagonal_(0)
    most = others.amax(dim=1)
    pardon = torch.where(most[:, None] < most, most[:, None] / most, 1.0)
    left = (others * pardon).amax(dim=1)
    alpha = (1 - left).clamp(0, 1)
    if not alpha.max() > 0:
        return torch.zeros_like(alpha), left
    # The largest is 1, whose logit would be infinite: the source takes 0.99 for it.
    alpha = (alpha / alpha.max()).clamp(max=0.99)
    return (confidence * (torch.logit(alpha) + 0.5)).clamp(0, 1), left


@dataclass(frozen=True)
class FoolsGold:
    """The rule, with each client's sum of updates."""

    config: Config
    sums: dict[int, torch.Tensor] = field(default_factory=dict)

    def __call__(self, round: Round) -> Round:
        """The round with the weights of similar clients lowered."""
        rows = present(round, SPEC.name)
        if not len(rows):
            return round
        vectors = self._remembered(round, rows) if self.config.history else round.updates[rows]
        factors, scores = learning_rates(cosines(vectors), self.config.confidence)
        return reweighted(round, rows, factors, scores)

    def _remembered(self, round: Round, rows: torch.Tensor) -> torch.Tensor:
        for row in rows.tolist():
            client, update = int(round.clients[row]), round.updates[row].float()
            total = self.sums[client] + update if client in self.sums else update
            self.sums[client] = total.clamp(-_LARGEST, _LARGEST)
        return torch.stack([self.sums[int(round.clients[row])] for row in rows.tolist()])


SPEC = rule_spec("foolsgold", Config, lambda config, *_: FoolsGold(config), "fung2020foolsgold")
