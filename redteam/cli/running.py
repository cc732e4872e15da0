"""What every command that runs cells does: plan, dry-run, run with progress, print, exit code."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from redteam.core import progress as progress_module
from redteam.core.device import available_cores, resolve
from redteam.core.plan import Request, plan
from redteam.core.threat import DataSource

if TYPE_CHECKING:
    from redteam.core.device import Device
    from redteam.core.plan import Job
    from redteam.core.record import Record


def source_of(params: Mapping[str, Any]) -> DataSource:
    """Where data sets come from, from the shared options."""
    return DataSource(params["data_dir"], params["offline"], params["download"])


def execute(requests: Sequence[Request], params: Mapping[str, Any]) -> int:
    """Plan the requests, run them, print what came out. Returns the exit code."""
    device, source = resolve(params["device"]), source_of(params)
    planned = [job for request in requests for job in plan(request, source, device)]
    jobs = list({job.cell.id: job for job in planned}.values())
    if params["resume"]:
        _check_resumed(jobs, params["store"], params["resume"])
    workers = params["workers"] or (available_cores() if device.kind == "cpu" else 1)
    if params["dry_run"]:
        _dry_run(jobs, source, device, workers, params["as_json"])
        return 0
    records = _run(jobs, source, device, workers, params)
    if params["as_json"]:
        click.echo(json.dumps({"records": [json.loads(r.to_json()) for r in records]}, indent=2))
    else:
        from redteam.cli.render import print_records

        print_records(records, params["store"])
    return 0 if all(r.status == "ok" for r in records) else 1


def _check_resumed(jobs: Sequence[Job], store: Path, run: str) -> None:
    """Refuse to go on with a run that none of the planned cells is, and say in what they differ.

    Raises:
        DriftError: see above. InputError: no such run.
    """
    from redteam.core.checkpoint import differences
    from redteam.core.errors import DriftError
    from redteam.core.store import Store

    cell = Store(store).begun(run)
    if any(job.cell.id == cell.id for job in jobs):
        return
    before = cell.model_dump(mode="json")
    planned = [job.cell.model_dump(mode="json") for job in jobs if job.cell.attack.name == cell.attack.name]
    changed = min(
        (differences(before, now) for now in planned), key=len, default=[f"attack: {cell.attack.name}"]
    )
    changed = [line for line in changed if not line.startswith("attack.digest")]
    raise DriftError(
        f"the run {cell.id} is another one ({'; '.join(changed)}). Give the same settings to go on with it, "
        "or leave --resume out to begin a run of these"
    )


def _run(
    jobs: Sequence[Job], source: DataSource, device: Device, workers: int, params: Mapping[str, Any]
) -> list[Record]:
    """Run the cells; records come back in the order of `jobs`."""
    from redteam.core.ledger import Caps, Prices
    from redteam.core.run import Settings, run_jobs

    prices = Prices.read(params["prices"]) if params["prices"] else None
    caps = Caps(requests=params["cap_requests"], tokens=params["cap_tokens"], usd=params["cap_usd"])
    settings = Settings(
        params["store"], device, source, params["max_seconds"], params["threads"], caps, prices
    )
    quiet = params["quiet"] or params["as_json"]
    done: dict[str, Record] = {}
    with progress_module.for_terminal(quiet) as progress:
        running = run_jobs(jobs, settings, progress, workers=workers, force=params["force"])
        with closing(running):
            for job, record, fresh in running:
                done[job.cell.id] = record
                if quiet:
                    continue
                where = f"already in {params['store']}, ran on {record.environment.device}"
                state = record.status if fresh else f"{record.status} ({where})"
                words = f"{record.cell.attack.name} seed {record.cell.seed}: {state}"
                click.echo(f"[{len(done)}/{len(jobs)}] {words}, {record.cost.wall_s:.0f} s", err=True)
    return [done[job.cell.id] for job in jobs]


def _dry_run(jobs: Sequence[Job], source: DataSource, device: Device, workers: int, as_json: bool) -> None:
    from redteam.core.estimate import estimate

    work = estimate(jobs, source, device, workers)
    cells = [{"id": j.cell.id, "role": j.role, **j.cell.model_dump(mode="json")} for j in jobs]
    if as_json:
        click.echo(json.dumps({"cells": cells, "estimate": work}, indent=2))
        return
    for cell in cells:
        click.echo(f"{cell['role']} {cell['attack']['name']} seed {cell['seed']} (id {cell['id']})")
        click.echo(f"  {json.dumps(cell['attack']['config'])}")
    click.echo(f"target {jobs[0].cell.task.model} on {jobs[0].cell.task.dataset}")
    click.echo(f"  {json.dumps(jobs[0].cell.task.config)}")
    click.echo(f"{len(jobs)} cells. {work['unit'].capitalize()}, by stage:")
    for stage, amount in work["items"].items():
        click.echo(f"  {stage}: {amount:,.0f}")
    if work["per_second"] is None:
        click.echo("Not timed: that would ask the model. Nothing was run.")
        return
    click.echo(
        f"At {work['per_second']:,.1f} a second on one {work['place']} (timed just now), "
        f"{work['workers']} at once: about {_duration(work['seconds'])}. Nothing was run."
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
