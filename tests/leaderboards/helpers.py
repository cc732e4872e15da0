"""Records made by hand: fixed environment, cost and time, so that boards of them can be stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from redteam.core.hashing import digest_json
from redteam.core.record import (
    Cell,
    Cost,
    DefensePlugin,
    Environment,
    ErrorInfo,
    Metric,
    Plugin,
    PublishedNumber,
    Record,
    TaskInfo,
)

BACKDOOR = {"trigger": "1xs", "trigger_strength": 6.0, "trigger_cycles": 8.0, "source": 9, "target_class": 4}
RECIPE = {"epochs": 3, "lr": 0.1, "victims": 2, "batch_size": 64}
TIMEOUT = "out of time | after\n60 s"
COUNTS = {"cta": 360, "base_cta": 360, "cta_drop": 360, "asr": 324, "ra": 324}
ENVIRONMENT = Environment(
    suite="0.1.0", git_commit="0123456789abcdef0123", dirty=False, python="3.11.7",
    packages={"torch": "2.15.0"}, os="Linux 6.1", cpu="Example CPU x2", device="cpu",
)  # fmt: skip
PAPER = (
    PublishedNumber(metric="pta", value=0.994, source="jha2023flip", where="abstract"),
    PublishedNumber(metric="ra", value=None, source="jha2023flip", where="table 2"),
)
SHADOW = DefensePlugin(name="shadow", version="1", config={"rounds": 2}, oracle=("number of poisons",))


def metric(name: str, value: float, half: float | None = 0.05, victims: int = 2) -> Metric:
    """A metric with a symmetric interval, or with none."""
    low, high = (None, None) if half is None else (max(-1.0, value - half), min(1.0, value + half))
    return Metric(
        name=name, value=value, low=low, high=high, n=COUNTS.get(name, 36), seeds=victims,
        confidence=None if half is None else 0.95, method="two-way-t" if half is not None else "exact count",
    )  # fmt: skip


def cell(
    attack: str = "flip", *, budget: int = 30, seed: int = 0, settings: Mapping[str, Any] | None = None,
    dataset: str = "digits", defenses: Sequence[DefensePlugin] = (), knowledge: Any = "adaptive",
    threat: str = "poisoning",
) -> Cell:  # fmt: skip
    """A cell on a small task."""
    config = {**BACKDOOR, "budget": budget, **(settings or {})}
    return Cell(
        threat=threat, knowledge=knowledge, seed=seed, defenses=tuple(defenses),
        task=TaskInfo(dataset=dataset, digest=digest_json(dataset), target="image-classifier",
                      model="preact-resnet8", config=RECIPE),
        attack=Plugin(name=attack, version="1", config=config, digest=digest_json([attack, "1", config])),
    )  # fmt: skip


def record(
    attack: str = "flip", *, lift: float = 0.5, half: float | None = 0.05, role: Any = "attack",
    metrics: Sequence[Metric] | None = None, status: Any = "ok", day: int = 1, **rest: Any,
) -> Record:  # fmt: skip
    """A record with plausible metrics around a trigger lift. `rest`: fields of the cell or the record."""
    own = {k: rest.pop(k) for k in ("published", "flags", "source", "environment") if k in rest}
    made = cell(attack, **rest)
    numbers = metrics if metrics is not None else (
        metric("cta", 0.93, 0.02), metric("pta", min(1.0, lift + 0.1)), metric("trigger_lift", lift, half),
        metric("asr", lift / 2 + 0.1), metric("ra", 0.4), metric("base_pta", 0.06, 0.03),
        metric("cta_drop", 0.01, 0.02), metric("poison_rate", 0.02, None),
    )  # fmt: skip
    return Record(
        id=made.id, status=status, role=role, cell=made, metrics=tuple(numbers) if status == "ok" else (),
        cost=Cost(wall_s=10.0, cpu_s=9.0), created=datetime(2026, 1, day, tzinfo=UTC),
        error=None if status == "ok" else ErrorInfo(type="LimitReachedError", message=TIMEOUT),
        **{"source": "measured", "environment": ENVIRONMENT, **own},
    )  # fmt: skip


def golden_records() -> list[Record]:
    """Two attacks of two budgets, controls, a defence, a failure, a submitted row and a reported one."""
    behind = {"defenses": (SHADOW,)}
    dirty = ENVIRONMENT.model_copy(update={"dirty": True, "device": "cuda: Example GPU"})
    return [
        *(record(seed=s, lift=0.50 + 0.02 * s, published=PAPER) for s in range(3)),
        *(record(seed=s, lift=0.30, settings={"passes": 1}, flags=("under-budget",)) for s in range(3)),
        *(record("other", seed=s, lift=0.55, environment=dirty) for s in range(2)),
        record(budget=10, lift=0.05, flags=("no-trigger-effect",)),
        record("no-attack", budget=0, lift=0.01, half=0.02, role="control"),
        record("random-flips", lift=0.9, role="control"),
        record("badnets", status="timeout", role="control", seed=1),
        record("other", lift=0.99, source="reported", settings={"variant": "paper"}),
        record("outsider", lift=0.20, source="external", published=PAPER[1:]),
        record(lift=0.10, **behind),
        record(lift=0.08, knowledge="oblivious", **behind),
    ]
