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
from filelock import FileLock

from redteam.artifacts import load_arrays, save_arrays
from redteam.device import Device
from redteam.errors import ArtifactError, LimitReachedError
from redteam.hashing import digest_json
from redteam.progress import NoProgress, Progress
from redteam.seeding import SeedPath

if TYPE_CHECKING:
    import torch

Arrays = Mapping[str, np.ndarray]


@dataclass
class Limits:
    """What a run may spend. None: no limit. Spending past one raises `LimitReachedError`."""

    wall_s: float | None = None
    queries: int | None = None
    _start: float = field(default_factory=time.monotonic)
    _queries: int = 0

    def check_time(self) -> None:
        """Raise if the time is up."""
        if self.wall_s is not None and (used := time.monotonic() - self._start) > self.wall_s:
            raise LimitReachedError(f"stopped after {used:.0f} s: the limit was {self.wall_s:g} s")

    def spend_queries(self, n: int) -> None:
        """Count `n` queries; raise instead if that would pass the limit."""
        if self.queries is not None and self._queries + n > self.queries:
            raise LimitReachedError(f"stopped after {self._queries} queries of {self.queries} allowed")
        self._queries += n


@dataclass
class Costs:
    """Seconds by stage, CPU seconds, and which stages were read back instead of computed."""

    stages: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)
    resumed: list[str] = field(default_factory=list)

    def add(self, name: str, wall_s: float, cpu_s: float) -> None:
        """Add to a stage's time."""
        self.stages[name] = self.stages.get(name, 0.0) + wall_s
        self.cpu[name] = self.cpu.get(name, 0.0) + cpu_s

    @staticmethod
    def peak_rss_bytes() -> int:
        """The largest resident size of this process so far."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


@dataclass(frozen=True)
class Context:
    """One run's surroundings. Derive with `at` for a stage's own seed path."""

    device: Device
    seeds: SeedPath
    stage_dir: Path | None = None
    dtype: str = "float32"
    progress: Progress = field(default_factory=NoProgress)
    limits: Limits = field(default_factory=Limits)
    costs: Costs = field(default_factory=Costs)

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
        if self.stage_dir is None:
            with self._timed(name):
                return dict(make())
        path = self.stage_dir / f"{name}-{digest_json(dict(key))[:24]}.npz"
        self.stage_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if path.exists():
                try:
                    arrays, meta = load_arrays(path)
                except ArtifactError:
                    path.unlink()
                else:
                    self.costs.add(name, meta["wall_s"], meta["cpu_s"])
                    self.costs.resumed.append(name)
                    return arrays
            with self._timed(name) as spent:
                arrays = dict(make())
            save_arrays(path, arrays, {"key": dict(key), **spent})
            return arrays

    @contextmanager
    def _timed(self, name: str) -> Iterator[dict[str, float]]:
        spent: dict[str, float] = {}
        wall, cpu = time.perf_counter(), time.process_time()
        yield spent
        spent.update(wall_s=time.perf_counter() - wall, cpu_s=time.process_time() - cpu)
        self.costs.add(name, spent["wall_s"], spent["cpu_s"])
