"""Training pipelines: images in, classifier out; the target of poisoning."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from redteam import data
from redteam.core import registry
from redteam.core.config import to_json
from redteam.core.context import Context
from redteam.core.hashing import digest_json
from redteam.core.record import Cell
from redteam.core.scored import Scored
from redteam.core.seeding import SeedPath
from redteam.core.threat import DataSource, Kind, Work
from redteam.core.types import Spec
from redteam.data.nouns import ImageDataset
from redteam.learn.nouns import TrainingSet
from redteam.learn.train import fit, steps_per_epoch
from redteam.threats.poisoning.artifact import Poison
from redteam.threats.poisoning.nouns import Trainable
from redteam.threats.poisoning.scorer import enforce_threat, measure, rescore
from redteam.threats.poisoning.target import SPEC, ImageTrainable, configure, make

_TIMED_STEPS = 6


@lru_cache(maxsize=4)
def _load(name: str, source: DataSource) -> ImageDataset:
    return data.load(name, data_dir=source.data_dir, offline=source.offline, download=source.download)


def _configure(dataset: ImageDataset, *layers: Mapping[str, Any]) -> Any:
    return configure(dataset, *map(dict, layers))


def _wrap(target: Trainable, spec: Spec, config: Any, ctx: Context) -> Trainable:
    defended: Trainable = spec.run(target, config, ctx)
    return defended


def _score(
    artifact: Poison, cell: Cell, access: Sequence[str], dataset: ImageDataset, target: Trainable,
    defended: Trainable, ctx: Context,
) -> Scored:  # fmt: skip
    enforce_threat(artifact, cell.attack.config, access)
    return measure(artifact, dataset, target, defended, target.config.victims, ctx)


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


KIND = Kind(
    spec=SPEC, dataset="fashion-mini", prefix="victim-", flags={"model": "model", "victims": "victims"},
    load=_load, configure=_configure, make=make, wrap=_wrap, score=_score, rescore=rescore, work=_work,
)  # fmt: skip
