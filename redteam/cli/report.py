"""`redteam report RUN`: one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from redteam.cli.options import data_options, store_option, with_options
from redteam.core.errors import ConfigError, DataError
from redteam.core.threat import DataSource, TargetType, of_record, resolve

if TYPE_CHECKING:
    from redteam.core.record import Record


@with_options(data_options())
@click.command()
@click.argument("run")
@store_option
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=None,
              help="where to write the page  [default: report.html in the run's folder]")  # fmt: skip
@click.option("--dataset", default=None, help="load the images by this name instead of the record's")
def report(run: str, store: Path, out: Path | None, dataset: str | None, **params: Any) -> None:
    """Write one HTML page about RUN (a folder, or the start of an id).

    The page shows what the threat has to show: poisoned images and who was removed, success against queries or over
    rounds, every string or conversation, accuracy against the radius; and for each the controls, the cost, the flags,
    where it ran, and the command that runs it again.
    """
    from redteam.core.files import write_text
    from redteam.core.store import Store, read_record

    folder = Store(store).locate(run)
    record = read_record(folder / "record.json")
    siblings = [r for r in Store(folder.parent).records() if r.cell.task == record.cell.task]
    target = of_record(record.cell.threat, record.cell.task.target)
    if target is None:
        raise ConfigError(
            f"no installed threat has a page about '{record.cell.threat}' of a '{record.cell.task.target}'; "
            "install the package that ran it"
        )
    data = _data(target, record, dataset, DataSource(**params)) if target.shows_data else None
    path = out or folder / "report.html"
    write_text(path, resolve(target.report)(folder, siblings, data))
    click.echo(str(path))


def _data(target: TargetType, record: Record, dataset: str | None, source: DataSource) -> Any:
    """The data set of the run, or None, saying why, where it is not at hand."""
    name = dataset or record.cell.task.dataset
    try:
        found = target.dataset_named(name, source)
        if found.digest != record.cell.task.digest:
            raise DataError(f"'{name}' is not the data this run used; the page will do without it")
    except DataError as error:
        click.echo(f"Note: {error}", err=True)
        return None
    return found
