"""FLIP in a federation: malicious clients change labels alone, crafted by trajectory matching on what they hold.

Threat: labels of the rows that the malicious clients hold; no image is touched, nobody stamps anything before test
time, and updates are as training gave them. The malicious clients pool their rows, true labels included.
Method: the steps of `flip` on the pooled rows, each row once, with experts that the attacker trains by itself; the
rows with the largest margins get another label with every malicious client that holds them. The share of flipped
rows is `stamped`, of all pooled rows: FLIP flips any class to any other.
What it shows: whether a backdoor without a single trigger in the training data survives local training, averaging
and the filters of a server, whose target label it need not be given.
Source: [jha2023flip] for the method, see `flip`; the federated form is this project's and has no published number.

Deviations: experts are trained on the pool as one data set, not federated, with momentum, and without crops and
mirroring, as clients train; the flips do not follow a distribution that drifts.

Measured here: weak. Fashion-MNIST at 14x14, mlp, 100 rounds, 35 % of 2,000 clients, a fifth of their rows flipped,
one seed each: trigger_lift 0.030 and cta_drop 0.015, beside 0.023 of random flips by 15 %. Also tried, none above
0.04: 15 passes, experts of 6 epochs, 1xs, one source class, expert_lr 0.02, a ResNet-8 surrogate (0.035, and 0.023
with two fifths flipped); 4xl 0.065, where the untouched model already gives 0.13 of stamped images the target.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

import numpy as np

import attacks.poisoning.flip as flip
from attacks.poisoning._malicious import (
    FEDERATED_LABEL_THREAT,
    MaliciousClients,
    draw_clients,
    federated_spec,
    malicious,
)
from attacks.poisoning._malicious import resolve as resolve_clients
from attacks.poisoning.flip.select import select_flips
from redteam.core.config import build, knob
from redteam.core.context import Context
from redteam.core.errors import RedteamError, UnknownNameError
from redteam.data.nouns import ImageSet
from redteam.learn.models import NAMES
from redteam.threats.poisoning.federation.artifact import Clients
from redteam.threats.poisoning.federation.nouns import Federation
from redteam.threats.poisoning.target import ClassifierConfig, ImageTrainable


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(MaliciousClients):
    """The attack. The crafting knobs are those of `flip`, at its default preset."""

    surrogate: str | None = knob(None, "architecture of the attacker's experts; none: the federation's")
    experts: int = knob(1, "experts trained; each pass visits one", low=1)
    expert_epochs: int = knob(2, "epochs of an expert that may be visited", low=1)
    expert_lr: float = knob(0.1, "constant learning rate of the experts", above=0)
    passes: int = knob(5, "passes of the label optimisation over the pooled rows", low=1)
    batch_size: int = knob(
        256, "images a step, of experts and label optimisation; at most a third of the pool", low=2
    )
    label_lr: float = knob(150.0, "learning rate of the label logits", above=0)


SMOKE = Config(expert_epochs=1, passes=2, batch_size=32, fraction=0.3)


def resolve(config: Config, target: Federation) -> Config:
    """Classes and counts as for any attack, and the surrogate.

    Raises:
        UnknownNameError: no such surrogate. ConfigError: as for any attack.
    """
    surrogate = config.surrogate or target.config.model
    if surrogate not in NAMES:
        raise UnknownNameError("surrogate", surrogate, NAMES)
    return resolve_clients(replace(config, surrogate=surrogate), target)


def pooled(
    target: Federation, ids: np.ndarray, config: Config, ctx: Context
) -> tuple[ImageTrainable, np.ndarray]:
    """What the malicious clients hold together, as a target of FLIP, and its rows of the training set, ascending.

    Raises:
        RedteamError: no image of the source class is among them.
    """
    rows = np.unique(target.rows[ids])
    train, facts = target.train, target.facts
    pool = ImageSet(train.images[rows], train.labels[rows], train.classes)
    wanted = pool.labels != config.target_class if config.source == -1 else pool.labels == config.source
    if not wanted.any():
        raise RedteamError(
            f"federated-flip: the {len(ids)} malicious clients hold {len(rows)} images, none of the source class; "
            "raise fraction, or choose source=all"
        )
    recipe = build(ClassifierConfig, {**facts.recipe, "pad": 0, "flip": False, "model": config.surrogate})
    return ImageTrainable(pool, facts, recipe, ctx.device), rows


def crafting(config: Config, pool: ImageTrainable) -> flip.Config:
    """The settings of `flip` on the pool: a batch of at most a third of it, so that there are steps to visit.

    Raises:
        ConfigError: the pool is too small to craft on.
    """
    settings = flip.Config(
        trigger=config.trigger, trigger_strength=config.trigger_strength, trigger_cycles=config.trigger_cycles,
        source=config.source, target_class=config.target_class, budget=flips(config, len(pool.train)),
        experts=config.experts, expert_epochs=config.expert_epochs, expert_lr=config.expert_lr,
        passes=config.passes, batch_size=max(2, min(config.batch_size, len(pool.train) // 3)),
        label_lr=config.label_lr, checkpoint_every=None,
    )  # fmt: skip
    return flip.resolve(settings, pool)


def flips(config: Config, rows: int) -> int:
    """How many of the pooled rows are flipped."""
    return max(1, round(config.stamped * rows))


def run(target: Federation, config: Config, ctx: Context) -> Clients:
    """Labels for the malicious clients' rows, crafted on all of them; no stamps."""
    ids = draw_clients(config, target, ctx)
    pool, rows = pooled(target, ids, config, ctx)
    settings = crafting(config, pool)
    logits = flip.label_logits(pool, settings, ctx)
    given = target.train.labels.copy()
    given[rows] = select_flips(logits, pool.train.labels, int(settings.budget))
    held = target.rows[ids]
    return malicious(config, ids, given[held], np.zeros(held.shape, bool), {})


def estimate(config: Config, target: Federation) -> dict[str, float]:
    """Images through a forward and backward pass, by stage; the pool is at most what the clients hold."""
    held = int(config.budget or 0) * int(target.config.images)
    rows = min(held, len(target.train))
    n = rows * (1 + 1 / len(target.train.classes))
    visited = min(config.experts, config.passes)
    return {"experts": ceil(visited * config.expert_epochs * n), "labels": ceil(3.4 * config.passes * n)}


SPEC = federated_spec(
    "federated-flip", run, "jha2023flip", config=Config, smoke=SMOKE, resolver=resolve, estimate=estimate,
    threat=FEDERATED_LABEL_THREAT,
)  # fmt: skip
