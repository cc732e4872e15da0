"""Classifiers: fitted on a source domain, attacked on images of the target domain; the target of evasion."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from redteam.core import registry
from redteam.core.context import Context
from redteam.core.hashing import digest_json
from redteam.core.record import Cell
from redteam.core.scored import Scored
from redteam.core.threat import DataSource, TableLayout, TargetType, Tiny, Work
from redteam.core.types import Spec
from redteam.threats.evasion.adapt import external
from redteam.threats.evasion.artifact import Perturbed
from redteam.threats.evasion.data.load import load_domains
from redteam.threats.evasion.domain import DomainDataset
from redteam.threats.evasion.pairing import PAIRING
from redteam.threats.evasion.scorer import enforce_threat, measure, rescore
from redteam.threats.evasion.target import PERTURBING, SPEC, DomainTarget, configure, make
from redteam.threats.evasion.tiny import pair

_TIMED_STEPS = 3


def _pinned(target: DomainTarget) -> dict[str, str]:
    digest = external.digest(target.config.model)
    return {"model_sha256": digest} if digest else {}


def _score(
    artifact: Perturbed, cell: Cell, access: Sequence[str], dataset: DomainDataset, target: DomainTarget,
    defended: DomainTarget, ctx: Context,
) -> Scored:  # fmt: skip
    replayed = bool(cell.defenses) and cell.knowledge == "oblivious"
    return measure(artifact, dataset, target, defended, ctx, replayed=replayed)


# ---------------------------------------------------------------- --dry-run


def _updates(jobs: Sequence[Any], rebuild: Callable[..., Any]) -> dict[str, float]:
    """Updates of each training, of which cells that share it count one. What attacks take comes on top.

    predictor: the Natural DANN of the first pseudo-labels. Trainings that differ in their defence, radius, norm or
    inner maximisation share one.
    """
    total: dict[str, float] = defaultdict(float)
    seen: set[str] = set()
    for job in jobs:
        _, target, _ = rebuild(job)
        cell, c = job.cell, target.config
        training = {k: v for k, v in cell.task.config.items() if k not in ("examples", "select")}
        settings = [d.model_dump(mode="json") for d in cell.defenses]
        key = digest_json([cell.task.digest, cell.task.model, training, settings, cell.seed])
        if key in seen or not (settings or not external.digest(c.model)):
            continue
        seen.add(key)
        total["+".join(d.name for d in cell.defenses) or "erm"] += float(c.steps * c.victims)
        plain = {k: v for k, v in training.items() if k not in PERTURBING}
        shared = digest_json(["predictor", cell.task.digest, cell.task.model, plain, cell.seed])
        if target.dataset.adapts and shared not in seen:
            seen.add(shared)
            total["predictor"] += float(c.steps * c.victims)
    return dict(total)


def _rate(target: DomainTarget, defended: Sequence[Spec], ctx: Context) -> float:
    """Updates a second of the first cell's training here, from a few timed ones; nothing is kept."""
    few = replace(target, config=replace(target.config, steps=_TIMED_STEPS, val_rows=1, val_steps=1))
    for spec in defended:
        few = spec.run(few, spec.presets["default"].config, ctx)
    unkept = replace(ctx, stage_dir=None)
    few.fit(unkept)
    start = time.perf_counter()
    few.fit(unkept)
    return _TIMED_STEPS * target.config.victims / (time.perf_counter() - start)


def _work(jobs: Sequence[Any], rebuild: Callable[..., Any], ctx: Context) -> Work:
    longest = max(jobs, key=lambda job: len(job.cell.defenses))
    _, target, _ = rebuild(longest)
    specs = [registry.get("defense", d.name) for d in longest.cell.defenses]
    return Work(
        _updates(jobs, rebuild), "updates of a training, at most as slow as timed", _rate(target, specs, ctx)
    )


def _load(name: str, source: DataSource) -> DomainDataset:
    return load_domains(name, data_dir=source.data_dir, offline=source.offline, download=source.download)


def _tiny(ctx: Context) -> DomainTarget:
    settings = {
        "model": "digit-cnn-small", "size": 0, "rows": 0, "steps": 4, "batch_size": 16, "check_every": 2,
        "val_rows": 10, "val_steps": 1, "inner_steps": 1, "critic_width": 8, "examples": 12, "lr": 1e-3,
    }  # fmt: skip
    return make(pair(), configure(pair(), settings), ctx)


def _data_now(target: DomainTarget) -> str:
    data = target.dataset
    assert data.target is not None
    return str(replace(data, source=replace(data.source), target=replace(data.target)).digest)


def _use(target: DomainTarget, ctx: Context) -> None:
    (fitted,) = target.fit(ctx)
    checks = range(target.config.check_every, target.config.steps + 1, target.config.check_every)
    assert fitted.step in checks and not fitted.network.training


CLASSIFIER = TargetType(
    spec=SPEC, artifact=Perturbed, dataset="syn*-to-optdigits", prefix="classifier-",
    flags={"model": "model", "victims": "victims", "examples": "examples", "select": "select"},
    load=_load, configure=configure, pinned=_pinned,
    enforce=lambda artifact, config, access, _: enforce_threat(artifact, config, access),
    score=_score, rescore=rescore, work=_work,
    report="redteam.threats.evasion.report:render", shows_data=True, pairing=PAIRING,
    layout=TableLayout(
        columns=("accuracy", "robust_accuracy", "attack_success", "selection_gap"), goal=("norm", "eps"),
        budget="eps", shown=("loss", "version"), together=True, behind="trained by",
    ),
    tiny=Tiny(
        make=_tiny,
        knobs={"steps": 3, "queries": 5, "targets": 2, "restarts": 1, "version": "custom"},
        untouched=_data_now, use=_use,
        fingerprint=lambda target: target.algorithm and (target.algorithm.name, dict(target.algorithm.settings)),
    ),
)  # fmt: skip
