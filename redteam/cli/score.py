"""`redteam score RUN`: the metrics again, from artifact and evidence."""

from __future__ import annotations

import json
from pathlib import Path

import click

from redteam.cli.options import DEFAULT_STORE


@click.command()
@click.argument("run")
@click.option(
    "--store", type=click.Path(file_okay=False, path_type=Path), default=DEFAULT_STORE, show_default=True
)
@click.option("--json", "as_json", is_flag=True, help="print the recomputed metrics as JSON")
def score(run: str, store: Path, as_json: bool) -> int:
    """Check the files of RUN (a folder, or the start of an id) and compute its metrics again.

    Exit code 0 if every metric of the record follows from its files to the last digit, else 1. Metrics
    that a later version added are shown and are no disagreement.
    """
    from redteam import kinds
    from redteam.store import Store, read_run

    record, artifact, tables = read_run(Store(store).locate(run))
    again = kinds.of_artifact(artifact).rescore(artifact, tables).as_metrics()
    if as_json:
        click.echo(
            json.dumps({"id": record.id, "metrics": [m.model_dump(mode="json") for m in again]}, indent=2)
        )
    recorded = {(m.name, m.group): m for m in record.metrics}
    new = [m for m in again if (m.name, m.group) not in recorded]
    wrong = [m for m in again if m not in new and recorded[m.name, m.group] != m]
    extra = set(recorded) - {(m.name, m.group) for m in again}
    if not as_json:
        for m in again:
            mark = "differs from the record" if m in wrong else "not in the record" if m in new else "agrees"
            interval = "" if m.low is None else f" [{m.low:.6f}, {m.high:.6f}]"
            click.echo(f"{m.name}: {m.value:.6f}{interval} n={m.n} {mark}")
    for name, _ in sorted(extra):
        click.echo(f"{name}: in the record, but not in its evidence", err=True)
    return 1 if wrong or extra else 0
