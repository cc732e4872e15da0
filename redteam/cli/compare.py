"""`redteam compare`: one defence against the others, paired."""

from __future__ import annotations

import json
import shutil
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from redteam.cli.options import DEFAULT_STORE

if TYPE_CHECKING:
    from redteam.compare import Comparison, Row


@click.command()
@click.option(
    "--store", type=click.Path(file_okay=False, path_type=Path), default=DEFAULT_STORE, show_default=True
)
@click.option("--metric", default="robust_accuracy", show_default=True, help="what to compare")
@click.option("--group", default=None, help="a part of the metric, such as eps=0.2  [default: the whole]")
@click.option("--base", required=True, metavar="DEFENCE",
              help="a defence's name, or its label where it ran with several settings; none: undefended")  # fmt: skip
@click.option("--by", default=None, metavar="METRIC",
              help="first choose one setting of each defence, by the best mean of this metric over seeds")  # fmt: skip
@click.option(
    "--attack", "attacks", multiple=True, metavar="NAME", help="only runs of this attack; may be repeated"
)
@click.option("--dataset", "datasets", multiple=True, metavar="NAME",
              help="only runs on this data set; may be repeated")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="print the comparison as JSON")
def compare(
    store: Path, metric: str, group: str | None, base: str, by: str | None, attacks: tuple[str, ...],
    datasets: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Compare one defence with every other over the runs of a store that are alike in all else.

    Runs are alike if task, attack, settings and seed are the same. The difference is base minus other, paired by
    images where the runs of an evasion attack kept their outcomes, else over cells. Seeds are pooled; a last row
    for each attack and defence is the mean over tasks. With --by a sweep's settings, of the defence and of the
    training, are chosen by a criterion first, and the choice is shown: `--by val_pseudo` needs no labels of the
    target domain, `--by val_oracle` uses them.
    """
    from redteam.compare import Question, outcomes_in
    from redteam.compare import compare as compared
    from redteam.store import Store

    records = [
        r
        for r in Store(store).records()
        if (not attacks or r.cell.attack.name in attacks)
        and (not datasets or r.cell.task.dataset in datasets)
    ]
    found = compared(records, Question(metric=metric, base=base, group=group, by=by), outcomes_in(store))
    if as_json:
        click.echo(json.dumps(as_dict(found), indent=2, allow_nan=False))
    else:
        show(found)


def as_dict(found: Comparison) -> dict[str, object]:
    """The comparison as plain JSON values."""
    rows = [{**asdict(r), "relative": r.relative} for r in found.rows]
    return {**asdict(found.question), "rows": rows, "picks": [asdict(p) for p in found.picks]}


def show(found: Comparison) -> None:
    """Print what was chosen, and a table for each task."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=max(126, shutil.get_terminal_size().columns))
    q = found.question
    for p in found.picks:
        text = (
            f"{p.task}, {p.attack}: {p.defence} is {p.setting}: {q.by} {p.value:.3f} over {p.cells} cells, "
            f"best of {p.among} settings"
        )
        console.print("\n".join(textwrap.wrap(text, console.width)), markup=False, highlight=False)
    metric = q.metric if q.group is None else f"{q.metric} at {q.group}"
    for task in dict.fromkeys(r.task for r in found.rows):
        rows = [r for r in found.rows if r.task == task]
        table = Table(title=f"{metric} of {rows[0].base} minus that of the others: {task}", pad_edge=False)
        table.add_column("attack", overflow="fold")
        table.add_column("other defence", overflow="fold")
        titles = (rows[0].base, "other", "difference", "relative", "paired by")
        for title in titles:
            table.add_column(title, justify="right", no_wrap=True)
        for r in rows:
            table.add_row(r.attack, r.other, *_numbers(r))
        console.print(table)
    console.print("Intervals at confidence 0.95; above zero: the base's is larger.", highlight=False)


def _numbers(r: Row) -> tuple[str, ...]:
    e = r.difference
    interval = "\nno interval" if e.low is None else f"\n[{e.low:+.3f}, {e.high:+.3f}]"
    relative = "-" if r.relative is None else f"{100 * r.relative:+.1f} %"
    unit = ("task" if e.method.endswith("tasks") else "cell") + ("s" if r.cells > 1 else "")
    return (
        f"{r.values[0]:.3f}", f"{r.values[1]:.3f}", f"{e.value:+.3f}{interval}", relative,
        f"{r.paired},\n{r.cells} {unit}",
    )  # fmt: skip
