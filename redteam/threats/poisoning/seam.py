"""Training pipelines: images in, classifier out; the target of poisoning."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from redteam import data
from redteam.core import registry
from redteam.core.config import to_json
from redteam.core.context import Context
from redteam.core.hashing import digest_json
from redteam.core.seeding import SeedPath
from redteam.core.threat import TableLayout, TargetType, Tiny, Work
from redteam.data.toys import stripes_dataset
from redteam.learn.nouns import TrainingSet
from redteam.learn.train import fit, steps_per_epoch
from redteam.threats.poisoning.artifact import Poison
from redteam.threats.poisoning.nouns import Trainable
from redteam.threats.poisoning.scorer import changes, enforce_budget, enforce_threat, measure, rescore
from redteam.threats.poisoning.target import SPEC, ImageTrainable, configure, make

# What all attacks that share a table are after.
GOAL = ("trigger", "trigger_strength", "trigger_cycles", "source", "target_class")
_TIMED_STEPS = 6


# ---------------------------------------------------------------- --dry-run


def _images(jobs: Sequence[Any], rebuild: Callable[..., Any]) -> dict[str, float]:
    """Images through a forward and backward pass. Shared stages count once."""
    total: dict[str, float] = defaultdict(float)
    seen: set[str] = set()
    for job in jobs:
        _, target, config = rebuild(job)
        cell, spec = job.cell, registry.get("attack", job.cell.attack.name)
        steps = steps_per_epoch(len(target.train), target.config)
        victims = target.config.victims * target.config.epochs * steps * target.config.batch_size
        untouched = to_json(config).get("budget") == 0
        if not untouched:
            total["victims"] += victims
        if (reference := f"reference {cell.task.digest} {cell.task.config} {cell.seed}") not in seen:
            seen.add(reference)
            total["clean reference victims"] += victims
        if spec.estimate:
            # The budget is chosen after the expensive part, so cells that differ in it alone share that.
            settings = {k: v for k, v in to_json(config).items() if k != "budget"}
            if (key := digest_json([spec.name, settings, cell.seed, cell.task.digest])) not in seen:
                seen.add(key)
                for stage, images in spec.estimate(config, target).items():
                    total[f"{spec.name} {stage}"] += images
    return dict(total)


def _rate(target: ImageTrainable, ctx: Context) -> float:
    """Images a second of the target's training loop here, from a few timed steps."""
    config = target.config
    rows = min(len(target.train), _TIMED_STEPS * config.batch_size)
    few = TrainingSet(target.train.images[:rows], target.train.labels[:rows])
    once = replace(config, epochs=1)
    resident, seeds = target.resident(few), [SeedPath(0, ("timing",))]
    fit(target.make_model, resident, replace(once, batch_size=min(rows, config.batch_size)), seeds, ctx)
    start = time.perf_counter()
    fit(target.make_model, resident, once, seeds, ctx)
    return steps_per_epoch(rows, once) * config.batch_size / (time.perf_counter() - start)


def _work(jobs: Sequence[Any], rebuild: Callable[..., Any], ctx: Context) -> Work:
    _, target, _ = rebuild(jobs[0])
    assert isinstance(target, ImageTrainable)
    return Work(_images(jobs, rebuild), "images through a training step", _rate(target, ctx))


def _tiny(ctx: Context) -> ImageTrainable:
    dataset = stripes_dataset()
    config = {"model": "preact-resnet8-s2", "epochs": 1, "batch_size": 32, "schedule": "onecycle"}
    return make(dataset, configure(dataset, config), ctx)


def _kept(artifact: Poison, target: Trainable) -> None:
    enforce_budget(changes(artifact, target.train), artifact.budget)


def _use(target: Trainable, ctx: Context) -> None:
    assert isinstance(target, Trainable)
    (fitted,) = target.fit(TrainingSet(target.train.images, target.train.labels), [0], ctx)
    assert np.isfinite(fitted.logits(target.train.images[:4])).all()


TRAINABLE = TargetType(
    spec=SPEC, artifact=Poison, dataset="fashion-mini", prefix="victim-",
    flags={"model": "model", "victims": "victims"}, load=data.load_from, configure=configure,
    enforce=lambda artifact, config, access, _: enforce_threat(artifact, config, access),
    score=lambda artifact, cell, access, dataset, target, defended, ctx: measure(
        artifact, dataset, target, defended, target.config.victims, ctx
    ),
    rescore=rescore, work=_work, report="redteam.threats.poisoning.report:render",
    shows_data=True,
    layout=TableLayout(
        columns=("cta", "pta", "trigger_lift", "cta_drop"), goal=GOAL, shown=("strategy",), together=True,
        base=("clean model's base rate of pta", "base_pta"), behind="victim behind",
        defended=("cta", "pta", "trigger_lift", "filter_tpr"),
    ),
    tiny=Tiny(
        make=_tiny, knobs={"budget": 6}, told={"budget": 6, "target_class": 1},
        untouched=lambda target: str(replace(target.train).digest), use=_use, kept=_kept,
    ),
)  # fmt: skip
