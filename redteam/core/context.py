"""What a run carries: device, dtype, seed paths, progress, limits, costs, and finished stages."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout

from redteam.core.arrays import load_arrays, save_arrays
from redteam.core.checkpoint import Checkpoint
from redteam.core.device import Device
from redteam.core.errors import ArtifactError, LimitReachedError
from redteam.core.hashing import digest_json
from redteam.core.ledger import Ledger
from redteam.core.progress import NoProgress, Progress
from redteam.core.seeding import SeedPath

if TYPE_CHECKING:
    import torch

Arrays = Mapping[str, np.ndarray]
UNFINISHED = "unfinished"


@dataclass
class Limits:
    """How long a run may take. None: no limit. Queries, tokens and money are the ledger's (`redteam.core.ledger`)."""

    wall_s: float | None = None
    _start: float = field(default_factory=time.monotonic)

    def check_time(self) -> None:
        """Raise if the time is up."""
        if self.wall_s is not None and (used := time.monotonic() - self._start) > self.wall_s:
            raise LimitReachedError(f"stopped after {used:.0f} s: the limit was {self.wall_s:g} s")


@dataclass
class Costs:
    """Seconds by stage. A stage read back counts with what it took when it was computed, and once."""

    stages: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)
    resumed: list[str] = field(default_factory=list)
    fresh_wall_s: float = 0.0
    fresh_cpu_s: float = 0.0
    waited_s: float = 0.0
    _counted: set[str] = field(default_factory=set)

    def computed(self, name: str, key: str, spent: Mapping[str, float]) -> None:
        """Count a stage that was computed just now."""
        self.fresh_wall_s += spent["wall_s"]
        self.fresh_cpu_s += spent["cpu_s"]
        self._add(name, key, spent)

    def read_back(self, name: str, key: str, spent: Mapping[str, float]) -> None:
        """Count a stage that an earlier run, another cell or this run computed."""
        self.resumed.append(name)
        self._add(name, key, spent)

    def _add(self, name: str, key: str, spent: Mapping[str, float]) -> None:
        if key not in self._counted:
            self._counted.add(key)
            self.stages[name] = self.stages.get(name, 0.0) + spent["wall_s"]
            self.cpu[name] = self.cpu.get(name, 0.0) + spent["cpu_s"]

    @staticmethod
    def peak_rss_bytes() -> int:
        """The largest resident size of this process so far, earlier cells of the same worker included."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


@dataclass(frozen=True)
class Context:
    """One run's surroundings. Derive with `at` for a stage's own seed path.

    stage_dir: finished stages. run_dir: the run's own folder, for unfinished work. cache_path: answers
    of remote models. ledger: what models were asked and what it cost, and the caps on it.
    """

    device: Device
    seeds: SeedPath
    stage_dir: Path | None = None
    dtype: str = "float32"
    progress: Progress = field(default_factory=NoProgress)
    limits: Limits = field(default_factory=Limits)
    costs: Costs = field(default_factory=Costs)
    run_dir: Path | None = None
    cache_path: Path | None = None
    ledger: Ledger = field(default_factory=Ledger)

    def at(self, *names: str | int) -> Context:
        """The same surroundings, further down the seed path."""
        return replace(self, seeds=self.seeds.child(*names))

    def rng(self, *names: str | int) -> np.random.Generator:
        """A NumPy generator of its own for the stage called `names`."""
        return self.seeds.child(*names).numpy()

    def torch_dtype(self) -> torch.dtype:
        """The dtype of the attacks' own maths."""
        import torch

        return {"float32": torch.float32, "float64": torch.float64}[self.dtype]

    def checkpoint(self, name: str, identity: Mapping[str, Any]) -> Checkpoint:
        """Where the unfinished search called `name` is kept; it survives until the run's record is written."""
        path = self.run_dir / UNFINISHED / f"{name}.npz" if self.run_dir is not None else None
        return Checkpoint(path, identity)

    def report(self, name: str, done: float, total: float) -> None:
        """Show progress, and stop here if the time is up."""
        self.progress.update(name, done, total)
        self.limits.check_time()

    def stage(self, name: str, key: Mapping[str, Any], make: Callable[[], Arrays]) -> dict[str, np.ndarray]:
        """The arrays that `make` returns, computed once for each `key` and read back from then on.

        A run that was stopped resumes from its finished stages, and cells that share a stage (one
        set of logits for all budgets, one clean victim for all attacks) compute it once, also when
        they run in several processes. A stage file that is damaged is computed again.
        """
        digest = digest_json([name, dict(key)])
        if self.stage_dir is None:
            arrays, spent = _timed(make)
            self.costs.computed(name, digest, spent)
            return arrays
        path = self.stage_dir / f"{name}-{digest[:24]}.npz"
        self.stage_dir.mkdir(parents=True, exist_ok=True)
        with self._locked(path.with_suffix(".lock")):
            if path.exists():
                try:
                    arrays, meta = load_arrays(path)
                    spent = {k: float(meta[k]) for k in ("wall_s", "cpu_s")}
                except (ArtifactError, KeyError):
                    path.unlink()
                else:
                    self.costs.read_back(name, digest, spent)
                    return arrays
            arrays, spent = _timed(make)
            self.costs.computed(name, digest, spent)
            save_arrays(path, arrays, {"key": dict(key), **spent})
            return arrays

    @contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        """Hold a stage's lock. Waiting for another process to compute it is no cost of this run."""
        lock, start = FileLock(path), time.perf_counter()
        while True:
            try:
                lock.acquire(timeout=1)
                break
            except Timeout:
                self.limits.check_time()
        self.costs.waited_s += time.perf_counter() - start
        try:
            yield
        finally:
            lock.release()


def _timed(make: Callable[[], Arrays]) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    wall, cpu = time.perf_counter(), time.process_time()
    arrays = dict(make())
    return arrays, {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
