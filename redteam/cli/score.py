"""`redteam score RUN`: the metrics again, from artifact and evidence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from redteam.cli.options import store_option
from redteam.core.threat import ScoreOptions, TargetType, of_artifact, resolve, threats

if TYPE_CHECKING:
    from pandas import DataFrame

    from redteam.core.types import Artifact


@click.command()
@click.argument("run")
@store_option
@click.option("--against", metavar="RUN", default=None,
              help="another run on the same strings or questions: paired differences, this minus that")  # fmt: skip
@click.option("--update", is_flag=True,
              help="write the recomputed metrics into the record, flagged `rescored`; the old one stays")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="print the recomputed metrics as JSON")
def score(
    run: str, store: Path, against: str | None, update: bool, as_json: bool, **brought: Any
) -> int:  # fmt: skip
    """Check the files of RUN (a folder, or the start of an id) and compute its metrics again.

    Exit code 0 if every metric of the record follows from its files to the last digit, else 1. Metrics
    that a later version added are shown and are no disagreement.
    """
    from redteam.core.store import Store, read_run

    record, artifact, tables = read_run(Store(store).locate(run))
    for found in _brought():
        values = {o.name: brought[o.name] for o in found.options if brought[o.name] not in (None, (), False)}
        if values and against is not None:
            raise click.UsageError(
                "--against: compare runs as they were scored, or ask for them scored otherwise"
            )
        if values:
            found.run(artifact, tables, values, as_json)
            return 0
    target = of_artifact(artifact.kind, run)
    scored = target.rescore(artifact, tables)
    again = scored.as_metrics()
    if update:
        own = Store(Store(store).locate(run).parent)
        kept = own.update(record, scored.evidence, again, scored.flags)
        click.echo(f"record written anew; the old one is {kept}", err=True)
    if as_json:
        click.echo(
            json.dumps({"id": record.id, "metrics": [m.model_dump(mode="json") for m in again]}, indent=2)
        )
    if against is not None:
        _compare(target, artifact, tables, Store(store).locate(against))
    recorded = {(m.name, m.group): m for m in record.metrics}
    new = [m for m in again if (m.name, m.group) not in recorded]
    wrong = [m for m in again if m not in new and recorded[m.name, m.group] != m]
    extra = set(recorded) - {(m.name, m.group) for m in again}
    if not as_json:
        for m in again:
            mark = "differs from the record" if m in wrong else "not in the record" if m in new else "agrees"
            interval = "" if m.low is None else f" [{m.low:.6f}, {m.high:.6f}]"
            part = f" ({m.group})" if m.group else ""
            click.echo(f"{m.name}{part}: {m.value:.6f}{interval} n={m.n} {mark}")
    for name, _ in sorted(extra):
        click.echo(f"{name}: in the record, but not in its evidence", err=True)
    return 1 if (wrong or extra) and not update else 0


def _brought() -> list[ScoreOptions]:
    """What threats add to this command."""
    return [resolve(threat.scoring) for threat in threats().values() if threat.scoring is not None]


for _found in _brought():
    score.params.extend(_found.options)


def _compare(target: TargetType, artifact: Artifact, tables: dict[str, DataFrame], other: Path) -> None:
    """Print the paired difference to another run.

    Raises:
        ConfigError: the runs have no examples to pair.
    """
    from redteam.core.errors import ConfigError
    from redteam.core.store import read_run

    record, theirs, others = read_run(other)
    difference = target.pairing.difference if target.pairing is not None else None
    if difference is None or theirs.kind != artifact.kind:
        raise ConfigError(
            "--against: expected two runs of one threat whose examples pair; "
            f"got '{artifact.kind}' and '{theirs.kind}'"
        )
    for name, e in difference(tables, others).items():
        interval = "" if e.low is None else f" [{e.low:.3f}, {e.high:.3f}]"
        click.echo(
            f"{name} minus that of {record.cell.attack.name} ({record.id}): {e.value:.3f}{interval} "
            f"n={e.n} {e.method}"
        )
