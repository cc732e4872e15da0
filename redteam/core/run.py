"""One cell, from artifact to record; and many cells, in this process or in several."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from redteam.core import registry
from redteam.core.config import build
from redteam.core.context import Context, Limits
from redteam.core.device import Device, hush_libraries, set_threads
from redteam.core.errors import BudgetExceededError, InputError, LimitReachedError, RedteamError, StorageError
from redteam.core.files import discard_partials
from redteam.core.ledger import Caps, Ledger, Prices
from redteam.core.plan import Job, read_files, rebuild
from redteam.core.progress import NoProgress, Progress, Relay
from redteam.core.record import (
    Cost,
    ErrorInfo,
    Evidence,
    FileRef,
    Metric,
    PublishedNumber,
    Record,
    environment,
    now,
)
from redteam.core.seeding import SeedPath
from redteam.core.store import Store
from redteam.core.threat import DataSource, TargetType, of_spec
from redteam.core.types import Spec

Status = Literal["ok", "error", "timeout", "unscored"]


@dataclass(frozen=True)
class Settings:
    """How to run, as opposed to what: none of it enters a cell's id."""

    store: Path
    device: Device
    source: DataSource = field(default_factory=DataSource)
    max_seconds: float | None = None
    threads: int | None = None
    caps: Caps = field(default_factory=Caps)
    prices: Prices | None = None


def defend(cell_defenses: Sequence[Any], target: Any, kind: TargetType, ctx: Context) -> Any:
    """The target behind its defences, the first one innermost."""
    for position, plugin in enumerate(cell_defenses):
        spec = registry.get("defense", plugin.name)
        config: Any = build(spec.config, plugin.config)
        target = kind.wrap(target, spec, config, ctx.at("defense", position, plugin.name))
    return target


def published(spec: Spec, cell: Any) -> tuple[PublishedNumber, ...]:
    """The paper's numbers for exactly this cell."""
    content = cell.model_dump(mode="json")

    def look(dotted: str) -> Any:
        value: Any = content
        for key in dotted.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        # Data sets re-encoded as JPEG hold the same images, and say so in their name.
        return value.removesuffix("-jpeg") if dotted == "task.dataset" and isinstance(value, str) else value

    return tuple(
        PublishedNumber(metric=p.metric, value=p.value, source=p.source, where=p.where)
        for p in spec.published
        if all(look(k) == v for k, v in p.when.items())
    )


class CellRun:
    """One cell being run: what it has cost and made so far, so that a failure still gives a record."""

    def __init__(self, job: Job, settings: Settings, progress: Progress) -> None:
        self.job, self.settings = job, settings
        self.store = Store(settings.store)
        self.ctx = Context(
            settings.device, SeedPath(job.cell.seed), self.store.stages, progress=progress,
            limits=Limits(wall_s=settings.max_seconds), run_dir=self.store.folder(job.cell.id),
            cache_path=self.store.answers,
            ledger=Ledger(self.store.spend(job.cell.id), settings.caps, settings.prices),
        )  # fmt: skip
        self.artifact: FileRef | None = None
        self.evidence: tuple[Evidence, ...] = ()
        self.metrics: tuple[Metric, ...] = ()
        self.flags: tuple[str, ...] = ()
        self._start = time.perf_counter(), time.process_time()
        # A folder without a record is an unfinished run: so is one that is being run again.
        (self.store.folder(job.cell.id) / "record.json").unlink(missing_ok=True)
        self.store.begin(job.cell)
        _reset_device_peak(settings.device)

    def score(self) -> None:
        """Attack, save the artifact, hand it to the scorer, save the evidence."""
        cell, ctx = self.job.cell, self.ctx
        attack = registry.get("attack", cell.attack.name)
        kind = of_spec(attack)
        dataset, target, config = rebuild(self.job, self.settings.source, ctx)
        defended = defend(cell.defenses, target, kind, ctx)
        attacked = defended if cell.knowledge == "adaptive" else target
        artifact = attack.run(attacked, config, ctx.at("attack", cell.attack.name))
        kind.check(artifact)
        self.artifact = self.store.save_artifact(cell.id, artifact)
        access = attack.threat.access if attack.threat else ()
        kind.enforce(artifact, cell.attack.config, access, target)
        scored = kind.score(artifact, cell, access, dataset, target, defended, ctx.at("score"))
        self.evidence = self.store.save_evidence(cell.id, scored.evidence)
        self.metrics, self.flags = scored.as_metrics(), scored.flags

    def record(self, status: Status, error: ErrorInfo | None) -> Record:
        """The record of what happened. Without a score there are no metrics and no evidence."""
        cell = self.job.cell
        return Record(
            id=cell.id, status=status, role=self.job.role, source="measured", cell=cell, metrics=self.metrics,
            published=published(registry.get("attack", cell.attack.name), cell), flags=self.flags,
            cost=self._cost(), environment=environment(self.settings.device.name), artifact=self.artifact,
            evidence=self.evidence if status == "ok" else (), created=now(), error=error,
        )  # fmt: skip

    def _cost(self) -> Cost:
        """Stages that were read back count with what they took when they were computed."""
        costs, (wall, cpu) = self.ctx.costs, self._start
        own_wall = time.perf_counter() - wall - costs.fresh_wall_s - costs.waited_s
        own_cpu = time.process_time() - cpu - costs.fresh_cpu_s
        return Cost(
            wall_s=round(sum(costs.stages.values()) + max(0.0, own_wall), 3),
            cpu_s=round(sum(costs.cpu.values()) + max(0.0, own_cpu), 3),
            stages={k: round(v, 3) for k, v in costs.stages.items()},
            peak_rss_bytes=costs.peak_rss_bytes(), device_peak_bytes=_device_peak(self.settings.device),
            **self._spent(),
        )  # fmt: skip

    def _spent(self) -> dict[str, Any]:
        """What models were asked, earlier attempts at this cell included, and what that cost."""
        if self.ctx.ledger.path is None or not self.ctx.ledger.path.is_file():
            return {}
        target, all_roles = self.ctx.ledger.spent("target"), self.ctx.ledger.spent()
        return {
            "queries": target.queries, "tokens_in": target.tokens_in, "tokens_out": target.tokens_out,
            "usd": all_roles.usd, "requests": all_roles.requests,
            "other_queries": all_roles.queries - target.queries,
        }  # fmt: skip


def _reset_device_peak(device: Device) -> None:
    torch = sys.modules.get("torch")
    if torch and device.kind == "cuda":
        torch.cuda.reset_peak_memory_stats(device.name)


def _device_peak(device: Device) -> int | None:
    torch = sys.modules.get("torch")
    return int(torch.cuda.max_memory_allocated(device.name)) if torch and device.kind == "cuda" else None


def run_cell(job: Job, settings: Settings, progress: Progress | None = None) -> Record:
    """Run one cell and save its record, also when it fails.

    Raises:
        InputError: the input turned out to be wrong; nothing is recorded.
        StorageError: the record could not be written; nothing half-written stays.
    """
    read_files(job)
    run = CellRun(job, settings, progress or NoProgress())
    status: Status = "ok"
    error: ErrorInfo | None = None
    try:
        run.score()
    except (InputError, StorageError):
        run.store.discard(job.cell.id)
        raise
    except LimitReachedError as e:
        status, error = "timeout", _info(e)
    except BudgetExceededError as e:
        status, error = "unscored", _info(e)
    except Exception as e:  # noqa: BLE001 - the one place where a cell's failure becomes a record
        status, error = "error", _info(e)
    record = run.record(status, error)
    try:
        run.store.save_record(record)
    except StorageError:
        run.store.discard(job.cell.id)
        raise
    finally:
        run.ctx.ledger.close()
    if record.status == "ok":
        run.store.forget_unfinished(job.cell.id)
    return record


def _info(error: Exception) -> ErrorInfo:
    return ErrorInfo(type=type(error).__name__, message=str(error) or repr(error))


# ---------------------------------------------------------------- many cells

_worker_settings: Settings
_worker_send: Any


def _start_worker(settings: Settings, queue: Any) -> None:
    """In a worker: one torch thread, Ctrl-C left to the parent, the end on SIGTERM or without a parent."""
    global _worker_settings, _worker_send
    threading.Thread(target=_follow_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_worker)
    hush_libraries()
    set_threads(1)
    _worker_settings, _worker_send = settings, queue.put


def _end_worker(*_: object) -> None:
    """Leave at once. An exception would be taken for the cell's own, or swallowed by the pool."""
    discard_partials()
    os._exit(1)


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _work(job: Job) -> Record:
    label = f"{job.cell.attack.name} seed {job.cell.seed}: "
    return run_cell(job, _worker_settings, Relay(lambda u: _worker_send((label + u[0], *u[1:]))))


def run_jobs(
    jobs: Iterable[Job], settings: Settings, progress: Progress, *, workers: int = 1, force: bool = False
) -> Generator[tuple[Job, Record, bool], None, None]:
    """Run cells and yield (job, record, fresh) as each ends. Finished cells are not run again.

    With several workers each cell runs in a process of its own with one torch thread; stopping the
    iteration (Ctrl-C) ends the workers, and finished stages and cells stay for the next run.
    """
    store = Store(settings.store)
    store.check_writable()
    todo = []
    for job in jobs:
        found = None if force else store.find(job.cell.id)
        if found is not None and found.status == "ok":
            yield job, found, False
        else:
            if force:
                store.start_afresh(job.cell.id)
            todo.append(job)
    if workers <= 1 or len(todo) <= 1:
        set_threads(settings.threads)
        for job in todo:
            yield job, run_cell(job, settings, _Labelled(progress, job)), True
        return
    yield from _in_processes(todo, settings, progress, min(workers, len(todo)))


class _Labelled:
    """Progress whose names carry the cell they belong to."""

    def __init__(self, inner: Progress, job: Job) -> None:
        self._inner, self._label = inner, f"{job.cell.attack.name} seed {job.cell.seed}: "

    def update(self, name: str, done: float, total: float) -> None:
        """Pass on."""
        self._inner.update(self._label + name, done, total)


def _in_processes(
    jobs: list[Job], settings: Settings, progress: Progress, workers: int
) -> Generator[tuple[Job, Record, bool], None, None]:
    spawn = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    queue = spawn.Queue()
    drain = threading.Thread(target=_drain, args=(queue, progress), daemon=True)
    drain.start()
    pool = ProcessPoolExecutor(
        workers, mp_context=spawn, initializer=_start_worker, initargs=(settings, queue)
    )
    pending: dict[Future[Record], Job] = {}
    try:
        pending = {pool.submit(_work, job): job for job in jobs}
        while pending:
            done, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                job = pending.pop(future)
                yield job, future.result(), True
    except BrokenProcessPool:
        raise RedteamError(
            "a worker process died (often for lack of memory); finished cells are kept: "
            "run the same command again, perhaps with --workers 1"
        ) from None
    finally:
        if pending:
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
        pool.shutdown(wait=True, cancel_futures=True)
        queue.put(None)
        drain.join(timeout=2)


def _drain(queue: Any, progress: Progress) -> None:
    while (update := queue.get()) is not None:
        progress.update(*update)
