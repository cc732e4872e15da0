"""`redteam score RUN`: the metrics again, from artifact and evidence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from redteam.cli.options import DEFAULT_STORE

if TYPE_CHECKING:
    from pandas import DataFrame

    from redteam.artifacts import Artifact


@click.command()
@click.argument("run")
@click.option(
    "--store", type=click.Path(file_okay=False, path_type=Path), default=DEFAULT_STORE, show_default=True
)
@click.option("--against", metavar="RUN", default=None,
              help="another run on the same strings: the paired difference of success, this minus that")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="print the recomputed metrics as JSON")
def score(run: str, store: Path, against: str | None, as_json: bool) -> int:
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
    if against is not None:
        _compare(artifact, tables, Store(store).locate(against))
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


def _compare(artifact: Artifact, tables: dict[str, DataFrame], other: Path) -> None:
    """Print the paired difference to another run.

    Raises:
        ConfigError: one of the runs has no strings to pair.
    """
    from redteam.artifacts import Strings
    from redteam.errors import ConfigError
    from redteam.score.strings import paired
    from redteam.store import read_run

    record, theirs, others = read_run(other)
    if not isinstance(artifact, Strings) or not isinstance(theirs, Strings):
        raise ConfigError("--against: expected two runs of string attacks, whose strings can be paired")
    e = paired(tables, others)
    click.echo(
        f"success minus that of {record.cell.attack.name} ({record.id}): {e.value:.3f} "
        f"[{e.low:.3f}, {e.high:.3f}] n={e.n} {e.method}"
    )
