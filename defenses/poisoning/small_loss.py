"""Small loss: train for a few epochs, then leave out the rows the classifier still gets most wrong.

Threat: poisoning, rows or labels. Networks fit clean labels before wrong ones, so after a short
training wrong labels have a large loss. A backdoor whose trigger is easy to learn has a small one:
then this filter removes hard clean rows instead. What it is told: how many rows to remove (1.5 for
each poison assumed).
Source: [han2018coteaching], whose small-loss selection this is, once instead of in every batch
(remembered).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from scipy.special import log_softmax

from defenses.poisoning._filtering import Filtering, Inspect, filter_spec, given_labels, trained_images
from defenses.poisoning._ranked import Labels, labels_knob, ranked
from defenses.poisoning._told import Told, oracle, told
from redteam.core.config import knob
from redteam.core.context import Context
from redteam.core.errors import ThreatMismatchError
from redteam.learn.nouns import TrainingSet
from redteam.threats.poisoning.filtering import Verdicts


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Told):
    """Knobs."""

    labels: Labels = labels_knob()
    warmup: float = knob(0.25, "epochs of the short training, as a share of the recipe's", above=0, high=1)


def losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Cross-entropy of each row's given label in nats, (n,) float64. logits: (n, K)."""
    given: np.ndarray = -log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]
    return given


def shortened(target: Any, share: float) -> Any:
    """The target with a share of its epochs, at least one.

    Raises:
        ThreatMismatchError: its recipe cannot be changed.
    """
    if isinstance(target, Filtering) or not hasattr(target, "with_config"):
        raise ThreatMismatchError(
            f"a short training needs a target whose recipe can be changed, got {type(target).__name__}; "
            "put this filter innermost (its --defense first)"
        )
    return target.with_config(epochs=max(1, ceil(share * target.config.epochs)))


def _inspect(config: Config) -> Inspect:
    def inspect(target: Any, data: TrainingSet, seed: int, ctx: Context) -> Verdicts:
        (model,) = shortened(target, config.warmup).fit(data, [seed], ctx)
        scores = losses(model.logits(data.images), given_labels(data))
        return ranked(config, data, scores, trained_images(model))

    return inspect


SPEC = filter_spec("small-loss", Config, _inspect, "han2018coteaching", told=told, oracle=oracle)
