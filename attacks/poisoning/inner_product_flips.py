"""Control: give the target label to the source images that already look most like the trigger.

Threat: the label-only threat of FLIP, at the same budget. Rows are ranked by the inner product of
the image with what the trigger adds to it, <x - mean, T(x) - x>; for stripes this is the natural
amount of the stripe in the image. Ties go to the lower row index, so nothing here is random.
Source: [jha2023flip], its inner-product baseline as remembered, not re-read. Deviation: the mean is removed
first, without which bright images win whatever their pattern.
"""

from __future__ import annotations

import numpy as np

from attacks.poisoning._backdoor import Backdoor, backdoor_spec, poison, relabel, source_rows
from redteam.core.context import Context
from redteam.threats.poisoning import triggers
from redteam.threats.poisoning.artifact import Poison
from redteam.threats.poisoning.nouns import Trainable


def inner_products(images: np.ndarray, added: np.ndarray) -> np.ndarray:
    """<x - mean(x), a> for each image. images: (N, H, W, C); added: same shape. Returns (N,) float64."""
    x = images.reshape(len(images), -1).astype(np.float64)
    a = added.reshape(len(images), -1).astype(np.float64)
    return np.einsum("nd,nd->n", x - x.mean(0), a)


def run(target: Trainable, config: Backdoor, ctx: Context) -> Poison:
    """Labels with the `budget` source rows most aligned with the trigger flipped to the target class."""
    rows = source_rows(target.train, config)
    images = target.train.images[rows]
    scores = inner_products(images, triggers.direction(config.spec(), images, rows))
    chosen = rows[np.argsort(-scores, kind="stable")[: int(config.budget)]]
    return poison(config, relabel(target.train, chosen, int(config.target_class)))


SPEC = backdoor_spec("inner-product-flips", run, "jha2023flip", role="control", deterministic=True)
