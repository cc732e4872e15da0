"""How much work a set of cells is, for --dry-run: amounts by stage, and a rate timed here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redteam.core import registry
from redteam.core.context import Context
from redteam.core.device import Device, set_threads
from redteam.core.errors import ConfigError
from redteam.core.plan import Job, rebuild
from redteam.core.seeding import SeedPath
from redteam.core.threat import DataSource, of_spec


def estimate(jobs: Sequence[Job], source: DataSource, device: Device, workers: int) -> dict[str, Any]:
    """Amounts by stage, the rate, and seconds if the cells keep all workers busy.

    Raises:
        ConfigError: the cells are on several kinds of targets, whose work is counted in other units.
    """
    ctx = Context(device, SeedPath(0))
    set_threads()
    names = dict.fromkeys(job.cell.attack.name for job in jobs)
    targets = {of_spec(registry.get("attack", name)).spec.name for name in names}
    if len(targets) > 1:
        raise ConfigError(
            f"--dry-run: expected cells of one kind of target, got {', '.join(sorted(targets))}; plan them apart"
        )
    kind = of_spec(registry.get("attack", jobs[0].cell.attack.name))
    work = kind.work(jobs, lambda job: rebuild(job, source, ctx), ctx)
    used = min(workers, len(jobs))
    return {
        "items": dict(work.items), "unit": work.unit, "per_second": work.rate, "workers": used,
        "place": "core" if device.kind == "cpu" else device.name,
        "seconds": sum(work.items.values()) / work.rate / used if work.rate else None,
    }  # fmt: skip
