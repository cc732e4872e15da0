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
              help="another run on the same strings or questions: paired differences, this minus that")  # fmt: skip
@click.option("--rules", type=click.Path(dir_okay=False, path_type=Path), default=None,
              help="of agents: the metrics under another rule table, a TOML file like the embedded one")  # fmt: skip
@click.option("--flip", "flips", multiple=True, metavar="TASK.FIELD=LABEL",
              help="of agents: the metrics with one label changed (allowed, forbidden or ambiguous)")  # fmt: skip
@click.option("--sensitivity", "sensitive", is_flag=True,
              help="of agents: how far each single label, flipped, moves privacy and utility")  # fmt: skip
@click.option("--update", is_flag=True,
              help="write the recomputed metrics into the record, flagged `rescored`; the old one stays")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="print the recomputed metrics as JSON")
def score(
    run: str, store: Path, against: str | None, rules: Path | None, flips: tuple[str, ...], sensitive: bool,
    update: bool, as_json: bool,
) -> int:  # fmt: skip
    """Check the files of RUN (a folder, or the start of an id) and compute its metrics again.

    Exit code 0 if every metric of the record follows from its files to the last digit, else 1. Metrics
    that a later version added are shown and are no disagreement.
    """
    from redteam.core import threat as kinds
    from redteam.core.store import Store, read_run

    record, artifact, tables = read_run(Store(store).locate(run))
    if rules is not None or flips or sensitive:
        from redteam.threats.agents.norms import rescored

        if against is not None:
            raise click.UsageError("--against: compare runs under their own norms, or ask for other norms")
        rescored(artifact, tables, rules, flips, sensitive, as_json)
        return 0
    scored = kinds.of_artifact(artifact).rescore(artifact, tables)
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
        _compare(artifact, tables, Store(store).locate(against))
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


def _compare(artifact: Artifact, tables: dict[str, DataFrame], other: Path) -> None:
    """Print the paired difference to another run.

    Raises:
        ConfigError: the runs have no examples to pair.
    """
    from redteam.core.errors import ConfigError
    from redteam.core.store import read_run
    from redteam.threats.agents import scorer as agents
    from redteam.threats.agents.artifact import Scripts
    from redteam.threats.strings import scorer as strings
    from redteam.threats.strings.artifact import Strings

    record, theirs, others = read_run(other)
    if isinstance(artifact, Strings) and isinstance(theirs, Strings):
        found = {"success": strings.paired(tables, others)}
    elif isinstance(artifact, Scripts) and isinstance(theirs, Scripts):
        pairs = agents.paired(tables, others)
        found = {name.removesuffix("_difference"): e for name, e in pairs.items()}
    else:
        raise ConfigError("--against: expected two runs of attacks on strings, or two on agents")
    for name, e in found.items():
        interval = "" if e.low is None else f" [{e.low:.3f}, {e.high:.3f}]"
        click.echo(
            f"{name} minus that of {record.cell.attack.name} ({record.id}): {e.value:.3f}{interval} "
            f"n={e.n} {e.method}"
        )
