"""How much work a set of cells is, for --dry-run: images trained on by stage, and a timed rate."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from redteam import registry
from redteam.config import to_json
from redteam.context import Context
from redteam.device import Device, set_threads
from redteam.hashing import digest_json
from redteam.plan import DataSource, Job, rebuild
from redteam.seeding import SeedPath
from redteam.train import fit, steps_per_epoch
from redteam.trainable import ImageTrainable
from redteam.types import TrainingSet

_TIMED_STEPS = 6


def images_by_stage(jobs: Sequence[Job], source: DataSource, ctx: Context) -> dict[str, float]:
    """Images through a forward and backward pass. Shared stages count once."""
    total: dict[str, float] = defaultdict(float)
    seen: set[str] = set()
    for job in jobs:
        _, target, config = rebuild(job, source, ctx)
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


def rate(target: ImageTrainable, ctx: Context) -> float:
    """Images a second of the target's training loop here, from a few timed steps."""
    config = target.config
    rows = min(len(target.train), _TIMED_STEPS * config.batch_size)
    data = TrainingSet(target.train.images[:rows], target.train.labels[:rows])
    once = replace(config, epochs=1)
    resident, seeds = target.resident(data), [SeedPath(0, ("timing",))]
    fit(target.make_model, resident, replace(once, batch_size=min(rows, config.batch_size)), seeds, ctx)
    start = time.perf_counter()
    fit(target.make_model, resident, once, seeds, ctx)
    return steps_per_epoch(rows, once) * config.batch_size / (time.perf_counter() - start)


def estimate(jobs: Sequence[Job], source: DataSource, device: Device, workers: int) -> dict[str, Any]:
    """Images by stage, the rate, and seconds if the cells keep all workers busy."""
    ctx = Context(device, SeedPath(0))
    set_threads()
    images = images_by_stage(jobs, source, ctx)
    _, target, _ = rebuild(jobs[0], source, ctx)
    assert isinstance(target, ImageTrainable)
    speed, used = rate(target, ctx), min(workers, len(jobs))
    return {
        "images": images,
        "images_per_s": speed,
        "unit": "core" if device.kind == "cpu" else device.name,
        "workers": used,
        "seconds": sum(images.values()) / speed / used,
    }
