"""`redteam leaderboard show | build | verify | submit`: boards from records."""

from __future__ import annotations

from pathlib import Path

import click

from redteam.core.files import DEFAULT_STORE

_HERE = Path("leaderboards")
_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.group()
def leaderboard() -> None:
    """Show, build, verify or extend the boards."""


def _paths(records: tuple[Path, ...]) -> list[Path]:
    """The given paths, or the committed records and the local runs, whichever exist.

    Raises:
        click.UsageError: a given path, or both defaults, are missing.
    """
    missing = [p for p in records if not p.exists()]
    if missing:
        raise click.UsageError(f"no records at {missing[0]}")
    found = list(records) or [p for p in (_HERE / "records", Path(DEFAULT_STORE)) if p.exists()]
    if not found:
        raise click.UsageError("no records here: expected leaderboards/records or runs, or name a path")
    return found


@leaderboard.command()
@click.argument("records", nargs=-1, type=click.Path(path_type=Path))
def show(records: tuple[Path, ...]) -> None:
    """Print the boards of RECORDS: folders, .jsonl or .json files [leaderboards/records and runs]."""
    from leaderboards import table

    click.echo(str(table.show(table.read_records(_paths(records)), table.load_rules())))


@leaderboard.command()
@click.argument("records", nargs=-1, type=click.Path(path_type=Path))
@click.option("--out", type=_FOLDER, default=_HERE / "boards", show_default=True)
def build(records: tuple[Path, ...], out: Path) -> None:
    """Write Markdown and CSV boards of RECORDS [leaderboards/records]."""
    from leaderboards import table

    for path in table.build(_paths(records or (_HERE / "records",)), out):
        click.echo(str(path))


@leaderboard.command()
@click.argument("records", nargs=-1, type=click.Path(path_type=Path))
@click.option("--boards", type=_FOLDER, default=_HERE / "boards", show_default=True)
def verify(records: tuple[Path, ...], boards: Path) -> int:
    """Check that every record validates and that the boards follow from them. Exit code 1 if not."""
    from leaderboards import table

    problems = table.verify(_paths(records or (_HERE / "records",)), boards)
    for problem in problems:
        click.echo(problem, err=True)
    if not problems:
        click.echo("every record validates, and the boards follow from the records")
    return 1 if problems else 0


@leaderboard.command()
@click.argument("runs", nargs=-1, required=True)
@click.option("--store", type=_FOLDER, default=DEFAULT_STORE, show_default=True)
@click.option("--to", type=click.Path(dir_okay=False, path_type=Path), required=True,
              help="the .jsonl file to add the records to")  # fmt: skip
def submit(runs: tuple[str, ...], store: Path, to: Path) -> int:
    """Score RUNS again and add their records to a file of records, each on one line.

    A run whose metrics do not follow from its files is refused.
    """
    from leaderboards import table
    from redteam.cli.score import score
    from redteam.core.files import write_text
    from redteam.core.store import Store, read_record

    kept = {r.id: r for r in table.read_records([to])} if to.exists() else {}
    for run in runs:
        folder = Store(store).locate(run)
        if click.get_current_context().invoke(score, run=str(folder), store=store, as_json=False) != 0:
            click.echo(f"{folder} was not added: its metrics do not follow from its files", err=True)
            return 1
        record = read_record(folder / "record.json")
        kept[record.id] = record
    write_text(to, "".join(kept[i].to_json() + "\n" for i in sorted(kept)))
    click.echo(f"{len(kept)} records in {to}")
    return 0
