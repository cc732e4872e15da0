"""The commands that this threat brings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from redteam.core.files import DEFAULT_STORE
from redteam.threats.agents.norms import SCORING, rescored


@click.command()
@click.argument("run")
@click.option(
    "--store", type=click.Path(file_okay=False, path_type=Path), default=DEFAULT_STORE, show_default=True
)
@click.option("--json", "as_json", is_flag=True, help="print the recomputed metrics as JSON")
def norms(run: str, store: Path, as_json: bool, **values: Any) -> None:
    """Judge RUN (a folder, or the start of an id), an attack on agents, again under other norms."""
    from redteam.core.store import Store, read_run

    _, artifact, tables = read_run(Store(store).locate(run))
    rescored(artifact, tables, values, as_json)


norms.params.extend(SCORING.options)


@click.command("agents")
@click.argument("dataset", default="profiles")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="where to write it"
)
def export(dataset: str, out: Path) -> None:
    """Write the users, tasks and rule table of DATASET as JSON lines, which `--dataset jsonl:PATH` reads."""
    from redteam.threats.agents.data.load import load_agents, write_jsonl

    write_jsonl(load_agents(dataset), out)
    click.echo(str(out))
