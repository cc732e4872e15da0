"""Shadow filtering: a backbone trained without defence, and for its suspect label a shadow that answers instead.

Threat: poisoning, in one training or in a federation that never ends. A filter alone leaks: whatever
poison it misses adds up over a long training. So the backbone learns from everybody and is never
trusted with the target label; a shadow learns from what a robust-covariance filter keeps, for a
short time, and answers where the backbone says that label.

Method. (1) Train the backbone. (2) Represent each row, or each client by the mean over its rows of the
label. (3) SPECTRE's core: principal components, robust covariance, whitening by what it selects, QUE
scores; the threshold is the (1.5 x poisons)-th largest score. (4) Train the shadow on what scores below
it, false positives left out like any other, and stop when its accuracy on the label's training data
converges, of those it kept. (5) In a federation the threshold stays fixed until the shadow's accuracy on
current data falls, or the threshold flags nearly everybody; then a new shadow is launched with a new
threshold. (6) Where the backbone answers the label, the shadow's answer counts. What it is told
(poisons, label) is recorded as oracle knowledge.
Source: [wang2022shadow], reconstructed from the paper as remembered and its released code; the filter is
[hayase2021spectre].

Deviations: accuracies are averaged over windows of rounds, since each round has other clients; in a
federation the representation is that of the backbone as it stood at launch, so that a fixed threshold
means the same from round to round, and several rounds of clients set it; a shadow starts from the
federation's initial parameters and answers once it has stopped. Clients without a sample of the label
cannot be scored and are kept. A shadow must also reach most of the backbone's accuracy on the label (`reach`),
or it would stop in the noise of its first rounds; a fall counts beyond two standard errors. Convergence
defaults suit short runs; the released code has 0.0005 and 0.98 and judges by test accuracy, which we do not.
Rules before it act on the backbone; whom they leave out stays out of the shadow too.
Published: no number that could be checked. Measured here: docs/cards/shadow.md.
"""

from __future__ import annotations

from typing import Any

from defenses.poisoning._aggregation import behind
from defenses.poisoning._filtering import FILTER_THREAT
from defenses.poisoning._told import oracle, told
from defenses.poisoning.shadow.central import Shadowed
from defenses.poisoning.shadow.config import Config
from defenses.poisoning.shadow.federated import ShadowRule
from redteam.core.context import Context
from redteam.core.types import Spec
from redteam.threats.poisoning.federation.nouns import Setting


def _rule(config: Config, setting: Setting, clients: int) -> ShadowRule:
    return ShadowRule(config, setting, config.assumed() / clients)


def run(target: Any, config: Config, ctx: Context) -> Any:
    """The target with a shadow: a trainable, or a federation."""
    if target.kind == "federation":
        return behind(target, SPEC.name, SPEC.version, config, _rule)
    return Shadowed(target, SPEC.name, config)


SPEC = Spec(
    name="shadow", kind="defense", version="1", config=Config, run=run,
    source="wang2022shadow", threat=FILTER_THREAT, told=told, oracle=oracle, also=("federation",),
    variants=({"factor": 1.0}, {"factor": 0.5}, {"factor": 2.0}, {"labels": "suspected"}),
    baselines=(
        "random-removal", "spectral-signatures", "activation-clustering", "spectre", "knn-agreement",
        "confident-learning", "small-loss", "norm-clip", "noise", "multi-krum", "trimmed-mean", "rfa", "foolsgold",
        "flame",
    ),
)  # fmt: skip
