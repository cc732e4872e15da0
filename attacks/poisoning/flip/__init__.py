"""FLIP: a backdoor planted by changing training labels alone.

Threat: the attacker sees the training images and their true labels and hands back wrong labels for
a few; it touches no image. At test time it stamps a trigger on images of the source class, which
the victim then gives the target class.

Method, three steps. (1) Train experts on the clean data plus triggered source images that carry
the target label. (2) Along their trajectories, optimise soft labels of the clean images so that one
SGD step of a student trained on them lands where the expert's step lands. (3) Flip the labels whose
logits leaned furthest from the true class. One set of logits serves every budget.
Source: [jha2023flip] Jha, Hayase, Oh: Label Poisoning is All You Need, NeurIPS 2023, after
its abstract and its released code; the paper's text was not at hand, so no section is cited.

Deviations: the label gradient is computed in closed form (`attacks.poisoning.flip.gradient`), equal to the
double backward pass to rounding; dense label momentum is folded into the step size; the target
class is left out of all-to-one test images; crops and flips are drawn afresh each pass, where the
released code has eight.

Published: CIFAR-10, ResNet-32, sinusoidal trigger, 1000 flips (2 %): pta 0.994, clean accuracy down
0.018, after 200 epochs (abstract). Measured here: see the README's table and docs/cards/flip.md,
which also says what was tried.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np

from attacks.poisoning._backdoor import Backdoor, backdoor_spec, known_rows, poison
from attacks.poisoning._backdoor import resolve as resolve_backdoor
from attacks.poisoning.flip.craft import draw_visits, expert_recipe, expert_steps, optimise_labels
from attacks.poisoning.flip.select import final_labels, is_final, pin_files, read_pinned, select_flips, soften
from redteam.core.config import check_ranges, knob, to_json
from redteam.core.context import Context
from redteam.core.errors import ConfigError
from redteam.core.types import Preset, Published
from redteam.threats.poisoning.artifact import Poison
from redteam.threats.poisoning.nouns import Trainable


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Backdoor):
    """The attack. Defaults are the paper's."""

    experts: int = knob(50, "experts trained; each pass visits one", low=1)
    expert_epochs: int = knob(15, "epochs of an expert that may be visited", low=1)
    first_epoch: int = knob(0, "first epoch that may be visited", low=0)
    expert_lr: float = knob(0.1, "constant learning rate of the experts", above=0)
    expert_model: str | None = knob(None, "architecture of the experts; none: the victim's")
    checkpoint_every: int | None = knob(
        50, "steps between the places of an epoch that may be visited; none: a sixth of the epoch", low=1
    )
    passes: int = knob(15, "passes of the label optimisation over the data", low=1)
    batch_size: int = knob(256, "images a step, of experts and label optimisation", low=2)
    label_lr: float = knob(150.0, "learning rate of the label logits", above=0)
    label_momentum: float = knob(0.5, "momentum of the label logits", low=0, high=0.99)
    logit_height: float = knob(5.0, "starting logit of the true label; the others start at 0", above=0)
    regularizer: float = knob(0.0, "weight of the mean L1 distance of the soft labels from the true", low=0)
    poison_repeats: int = knob(1, "copies of each triggered row in the experts' data", low=1)
    runs: int = knob(1, "independent label optimisations; flips need a margin in all of them", low=1)
    soft_alpha: float | None = knob(
        None, "softFLIP: give soft labels to all rows, mixed by alpha", low=0, high=1
    )
    labels: tuple[str, ...] = knob((), "ready-made label files (.npy, globs allowed) instead of crafting")

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.first_epoch >= self.expert_epochs:
            raise ConfigError(
                f"first_epoch: expected less than expert_epochs ({self.expert_epochs}), got {self.first_epoch}"
            )


# Fields that only choose from the logits; the logits do not depend on them.
_AFTER_LOGITS = ("budget", "soft_alpha", "labels", "runs")

PAPER = Preset(
    config=Config(trigger_strength=6.0, budget=0.02),
    target={"model": "preact-resnet32", "epochs": 200, "schedule": "multistep", "lr": 0.1, "batch_size": 256},
    dataset="cifar10",
)
DEFAULT = Preset(config=Config(experts=1, expert_epochs=2, passes=5, checkpoint_every=None))
SMOKE = Preset(
    config=Config(experts=1, expert_epochs=1, passes=2, batch_size=64, checkpoint_every=4, budget=0.05),
    target={"model": "preact-resnet8", "epochs": 3, "batch_size": 64, "schedule": "onecycle"},
    dataset="digits",
)


def resolve(config: Config, target: Trainable) -> Config:
    """Class numbers and counts, label files pinned by digest; all that can be checked before work starts.

    Soft labels change every known row, so that is their budget.
    """
    if config.soft_alpha is not None:
        config = replace(config, budget=known_rows(config, len(target.train)))
    config = resolve_backdoor(config, target)
    if not config.labels:
        steps = expert_steps(target, config)
        if config.checkpoint_every is None:
            config = replace(config, checkpoint_every=ceil(steps / 6))
        draw_visits(config, steps, np.random.default_rng(0))  # refuses what cannot be visited
        return config
    train = target.train
    return replace(config, labels=pin_files(config.labels, train.labels, len(train.classes)))


def label_logits(target: Trainable, config: Config, ctx: Context) -> list[np.ndarray]:
    """The logits of each run, (n, K) float32, each a stage of its own that all budgets share."""
    settings = {k: v for k, v in to_json(config).items() if k not in _AFTER_LOGITS}
    out = []
    for run in range(config.runs):
        own = ctx.at("run", run)
        key = {
            "flip": SPEC.version, "data": target.train.digest, "config": settings, "seed": str(own.seeds),
            "model": config.expert_model or target.config.model, "recipe": to_json(expert_recipe(target, config)),
            "mean": list(target.facts.mean), "std": list(target.facts.std),
            "device": own.device.kind, "dtype": own.dtype,
        }  # fmt: skip

        def craft(own: Context = own) -> dict[str, np.ndarray]:
            logits, losses = optimise_labels(target, config, own)
            return {"logits": logits, "losses": losses}

        out.append(ctx.stage("flip-logits", key, craft)["logits"].astype(np.float64))
    return out


def run(target: Trainable, config: Config, ctx: Context) -> Poison:
    """Poisoned labels for the whole training set."""
    labels, classes = target.train.labels, len(target.train.classes)
    known, budget = known_rows(config, len(labels)), int(config.budget)
    if config.labels:
        logits = [read_pinned(pin, labels, classes) for pin in config.labels]
    else:
        logits = label_logits(target, config, ctx)
    if config.soft_alpha is not None:
        soft = soften(logits, labels, config.soft_alpha)
        soft[known:] = np.eye(classes, dtype=np.float32)[labels[known:]]
        return poison(config, soft)
    if config.labels and any(is_final(one, labels) for one in logits):
        return poison(config, final_labels(logits, labels, budget))
    return poison(config, select_flips(logits, labels, budget, known))


def estimate(config: Config, target: Trainable) -> dict[str, float]:
    """Images through a forward and backward pass, by stage; a label step costs about 3.4 of them."""
    if config.labels:
        return {}
    n = known_rows(config, len(target.train)) * (1 + config.poison_repeats / len(target.train.classes))
    visited = min(config.experts, config.passes)
    return {
        "experts": config.runs * visited * config.expert_epochs * n,
        "labels": config.runs * 3.4 * config.passes * n,
    }


# The paper's task and goal. How the labels were made may differ: that is what is compared.
_PAPER_CELL: dict[str, Any] = {
    "attack.config.source": 9, "attack.config.target_class": 4, "attack.config.trigger_cycles": 8.0,
    "attack.config.known_fraction": 1.0, "attack.config.soft_alpha": None, "defenses": [],
    "attack.config.budget": 1000, "attack.config.trigger": "1xs", "attack.config.trigger_strength": 6.0,
    "task.model": "preact-resnet32", "task.dataset": "cifar10", "task.config.epochs": 200,
}  # fmt: skip

SMALL = {"experts": 1, "expert_epochs": 1, "passes": 1, "batch_size": 32, "checkpoint_every": 2}

SPEC = backdoor_spec(
    "flip", run, "jha2023flip", config=Config, resolver=resolve, estimate=estimate, small=SMALL,
    presets={"default": DEFAULT, "paper": PAPER, "smoke": SMOKE},
    controls=("no-attack", "random-flips", "inner-product-flips"),
    published=(
        Published(metric="pta", value=0.994, source="jha2023flip", where="abstract", when=_PAPER_CELL),
        Published(metric="cta_drop", value=0.018, source="jha2023flip", where="abstract", when=_PAPER_CELL),
    ),
)  # fmt: skip
