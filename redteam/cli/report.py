"""`redteam report RUN`: one HTML page."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from redteam.cli.options import DEFAULT_STORE, data_options, with_options

if TYPE_CHECKING:
    from redteam.core.record import Record
    from redteam.data.nouns import ImageDataset
    from redteam.threats.evasion.domain import DomainDataset


@with_options(data_options())
@click.command()
@click.argument("run")
@click.option(
    "--store", type=click.Path(file_okay=False, path_type=Path), default=DEFAULT_STORE, show_default=True
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=None,
              help="where to write the page  [default: report.html in the run's folder]")  # fmt: skip
@click.option("--dataset", default=None, help="load the images by this name instead of the record's")
def report(run: str, store: Path, out: Path | None, dataset: str | None, **params: Any) -> None:
    """Write one HTML page about RUN (a folder, or the start of an id).

    Of poison: triggered examples, success against budget beside the controls, where the flips fell. Of malicious
    clients of a federation: success and accuracy over the rounds and behind other defences, who was removed. Of
    adversarial strings: success against queries, every string with its prompt and answer, what failed. Of suffixes
    against moderation: evasion beside both controls, every text with its suffix and verdicts. Of
    agents: privacy against utility over defences and attacks, what was shared, and every conversation. Of evasion:
    accuracy against the radius, what each attack of an ensemble broke, which state was taken, perturbed images.
    """
    from redteam.core.files import write_text
    from redteam.core.store import Store, read_record

    folder = Store(store).locate(run)
    record = read_record(folder / "record.json")
    siblings = [r for r in Store(folder.parent).records() if r.cell.task == record.cell.task]
    room, load = _page_of(record)
    given = load(record, dataset, params) if load else None
    page = importlib.import_module(f"redteam.threats.{room}.report").render(folder, siblings, given)
    path = out or folder / "report.html"
    write_text(path, page)
    click.echo(str(path))


def _page_of(record: Record) -> tuple[str, Callable[..., Any] | None]:
    """(the room whose page it is, what loads the data it shows)."""
    if record.cell.task.target == "federation":
        return "poisoning.federation", _images
    return {
        "strings": ("strings", None),
        "moderation": ("moderation", None),
        "agent-privacy": ("agents", None),
        "evasion": ("evasion", _domains),
    }.get(record.cell.threat, ("poisoning", _images))


def _domains(record: Record, dataset: str | None, params: dict[str, Any]) -> DomainDataset | None:
    """The pair of domains, or the one data set, of an evasion run; None, saying why, where it is not at hand."""
    from redteam import data
    from redteam.core.errors import DataError

    name = dataset or record.cell.task.dataset
    try:
        found = data.load_domains(name, **params)
        if found.digest != record.cell.task.digest:
            raise DataError(f"'{name}' is not the data this run used; the page will do without it")
    except DataError as error:
        click.echo(f"Note: {error}", err=True)
        return None
    return found


def _images(record: Record, dataset: str | None, params: dict[str, Any]) -> ImageDataset | None:
    """The images of the run, or None, saying why, where they are not at hand. Of a federation for their names alone."""
    from redteam import data
    from redteam.core.errors import DataError

    name = dataset or record.cell.task.dataset.removesuffix("-jpeg")
    try:
        images = data.load(name, **params)
        if images.digest != record.cell.task.digest:
            raise DataError(f"'{name}' is not the data this run used; the page will do without it")
    except DataError as error:
        click.echo(f"Note: {error}", err=True)
        return None
    return images
