"""How much work a set of cells is, for --dry-run: amounts by stage, and a rate timed here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redteam import kinds, registry
from redteam.context import Context
from redteam.device import Device, set_threads
from redteam.kinds import DataSource
from redteam.plan import Job, rebuild
from redteam.seeding import SeedPath


def estimate(jobs: Sequence[Job], source: DataSource, device: Device, workers: int) -> dict[str, Any]:
    """Amounts by stage, the rate, and seconds if the cells keep all workers busy."""
    ctx = Context(device, SeedPath(0))
    set_threads()
    kind = kinds.of_spec(registry.get("attack", jobs[0].cell.attack.name))
    work = kind.work(jobs, lambda job: rebuild(job, source, ctx), ctx)
    used = min(workers, len(jobs))
    return {
        "items": dict(work.items), "unit": work.unit, "per_second": work.rate, "workers": used,
        "place": "core" if device.kind == "cpu" else device.name,
        "seconds": sum(work.items.values()) / work.rate / used if work.rate else None,
    }  # fmt: skip
