"""Federations: clients in, a model after many rounds out; the target of malicious clients."""

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
from redteam.core.threat import TableLayout, TargetType, Tiny, Work
from redteam.data.toys import stripes_dataset
from redteam.threats.poisoning.federation import nouns
from redteam.threats.poisoning.federation.artifact import Clients
from redteam.threats.poisoning.federation.nouns import Federation
from redteam.threats.poisoning.federation.scorer import enforce_fit, enforce_threat, measure, rescore
from redteam.threats.poisoning.federation.target import SPEC, FederatedTarget, configure, make
from redteam.threats.poisoning.seam import GOAL

_TIMED_ROUNDS = 3


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


def _tiny(ctx: Context) -> FederatedTarget:
    """Twelve clients of eight images, six a round, three rounds."""
    dataset = stripes_dataset()
    settings = {"clients": 12, "per_round": 6, "images": 8, "rounds": 3, "batch_size": 4, "snapshot_every": 3}
    return make(dataset, configure(dataset, settings), ctx)


def _use(target: Federation, ctx: Context) -> None:
    assert isinstance(target, Federation)
    (run,) = target.fit(None, [0], ctx)
    assert set(run.clients["round"]) == set(range(target.config.rounds))
    assert run.snapshots[-1].round == target.config.rounds
    assert np.isfinite(run.snapshots[-1].model.logits(target.train.images[:4])).all()


FEDERATION = TargetType(
    spec=SPEC, artifact=Clients, dataset="fashion-mnist-14", prefix="federation-",
    flags={
        "model": "model", "victims": "victims", "clients": "clients", "rounds": "rounds", "per_round": "per-round",
    },
    load=data.load_from, configure=configure,
    enforce=lambda artifact, config, access, _: enforce_threat(artifact, config, access),
    score=lambda artifact, cell, access, dataset, target, defended, ctx: measure(
        artifact, dataset, target, defended, target.config.victims, ctx
    ),
    rescore=rescore, work=_work,
    report="redteam.threats.poisoning.federation.report:render", shows_data=True, offers=nouns,
    layout=TableLayout(
        columns=("cta", "asr", "asr_mean", "cta_drop"), goal=GOAL, shown=("strategy",), together=True,
        base=("clean federation's base rate of pta", "base_pta"), behind="server behind",
        defended=("cta", "asr", "asr_mean", "filter_tpr"),
    ),
    tiny=Tiny(
        make=_tiny, knobs={"budget": 2}, told={"budget": 2, "target_class": 1},
        untouched=lambda target: str(replace(target.train).digest), use=_use, kept=enforce_fit,
    ),
)  # fmt: skip
