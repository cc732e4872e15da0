"""`redteam sweep PLAN`: every cell of a plan file, resuming by cell id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from redteam.cli.options import run_options, with_options


@with_options(run_options())
@click.command()
@click.argument("plan_file", metavar="PLAN", type=click.Path(dir_okay=False, path_type=Path))
def sweep(plan_file: Path, **params: Any) -> int:
    """Run every cell of PLAN, a TOML file of [[run]] tables (see leaderboards/plans).

    Cells that have a record are not run again, so a sweep that was stopped goes on where it was.
    """
    from redteam.cli.running import execute
    from redteam.core.plan import read_plan

    return execute(read_plan(plan_file), params)
