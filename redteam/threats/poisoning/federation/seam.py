"""Federations: clients in, a model after many rounds out; the target of malicious clients."""

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
from redteam.core.errors import ArtifactError
from redteam.core.record import Cell
from redteam.core.scored import Scored
from redteam.core.threat import DataSource, Kind, Work
from redteam.core.types import Spec
from redteam.data.nouns import ImageDataset
from redteam.threats.poisoning.federation.artifact import Clients
from redteam.threats.poisoning.federation.nouns import Federation
from redteam.threats.poisoning.federation.scorer import enforce_threat, measure, rescore
from redteam.threats.poisoning.federation.target import SPEC, FederatedTarget, configure, make

_TIMED_ROUNDS = 3


@lru_cache(maxsize=4)
def _load(name: str, source: DataSource) -> ImageDataset:
    return data.load(name, data_dir=source.data_dir, offline=source.offline, download=source.download)


def _configure(dataset: ImageDataset, *layers: Mapping[str, Any]) -> Any:
    return configure(dataset, *map(dict, layers))


def _wrap(target: Federation, spec: Spec, config: Any, ctx: Context) -> Federation:
    defended: Federation = spec.run(target, config, ctx)
    return defended


def _score(
    artifact: Clients, cell: Cell, access: Sequence[str], dataset: ImageDataset, target: Federation,
    defended: Federation, ctx: Context,
) -> Scored:  # fmt: skip
    if not isinstance(artifact, Clients):
        raise ArtifactError(f"expected malicious clients, got an artifact of kind {artifact.kind}")
    enforce_threat(artifact, cell.attack.config, access)
    return measure(artifact, dataset, target, defended, target.config.victims, ctx)


# ---------------------------------------------------------------- --dry-run


def _images(jobs: Sequence[Any], rebuild: Callable[..., Any]) -> dict[str, float]:
    """Images that honest local training takes. What a defence trains beside the model comes on top."""
    total: dict[str, float] = defaultdict(float)
    seen: set[str] = set()
    for job in jobs:
        _, target, config = rebuild(job)
        c, spec = target.config, registry.get("attack", job.cell.attack.name)
        run = float(c.victims * c.rounds * c.per_round * c.images * c.local_epochs)
        if to_json(config).get("budget") != 0 or job.cell.defenses:
            total["federations"] += run
        if (
            reference := f"reference {job.cell.task.digest} {job.cell.task.config} {job.cell.seed}"
        ) not in seen:
            seen.add(reference)
            total["clean reference federations"] += run
        if spec.estimate:
            for stage, images in spec.estimate(config, target).items():
                total[f"{spec.name} {stage}"] += images
    return dict(total)


def _rate(target: FederatedTarget, ctx: Context) -> float:
    """Images a second of this federation's rounds here, from a few timed ones. Nothing is kept."""
    few = replace(target, config=replace(target.config, rounds=_TIMED_ROUNDS))
    unkept = replace(ctx, stage_dir=None)
    few.fit(None, [0], unkept)
    start = time.perf_counter()
    (run,) = few.fit(None, [0], unkept)
    return run.trained / (time.perf_counter() - start)


def _work(jobs: Sequence[Any], rebuild: Callable[..., Any], ctx: Context) -> Work:
    _, target, _ = rebuild(jobs[0])
    assert isinstance(target, FederatedTarget)
    return Work(
        _images(jobs, rebuild), "images through a client's training step, at least", _rate(target, ctx)
    )


KIND = Kind(
    spec=SPEC, dataset="fashion-mnist-14", prefix="federation-",
    flags={
        "model": "model", "victims": "victims", "clients": "clients", "rounds": "rounds", "per_round": "per-round",
    },
    load=_load, configure=_configure, make=make, wrap=_wrap, score=_score, rescore=rescore, work=_work,
)  # fmt: skip
