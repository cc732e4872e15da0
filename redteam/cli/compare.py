"""`redteam compare`: one defence against the others, paired, or all of them in a table."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from redteam.cli.options import store_option
from redteam.core.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from redteam.core.compare import Comparison, Line, Listing, Pick, Row
    from redteam.core.stats import Estimate


@click.command()
@store_option
@click.option("--metric", default="robust_accuracy", show_default=True, help="what to compare")
@click.option("--group", default=None, help="a part of the metric, such as eps=0.2  [default: the whole]")
@click.option("--base", default=None, metavar="DEFENCE",
              help="a defence's name, or its label where it ran with several settings; none: undefended")  # fmt: skip
@click.option("--worst", is_flag=True,
              help="worst case over attacks: an image is robust if it withstands every one")  # fmt: skip
@click.option("--table", "as_table", is_flag=True,
              help="no base: each defence under each attack and in the worst case")  # fmt: skip
@click.option("--by", default=None, metavar="METRIC",
              help="first choose one setting of each defence, by the best mean of this metric over seeds")  # fmt: skip
@click.option(
    "--attack", "attacks", multiple=True, metavar="NAME", help="only runs of this attack; may be repeated"
)
@click.option("--dataset", "datasets", multiple=True, metavar="NAME",
              help="only runs on this data set; may be repeated")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="print the comparison as JSON")
def compare(
    store: Path, metric: str, group: str | None, base: str | None, worst: bool, as_table: bool, by: str | None,
    attacks: tuple[str, ...], datasets: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Compare one defence with every other over the runs of a store that are alike in all else.

    Runs are alike if task, attack, settings and seed are the same. The difference is base minus other, paired by
    images where the runs kept their outcomes by image, else over cells. Seeds are pooled; a last row
    for each attack and defence is the mean over tasks. With --by a sweep's settings, of the defence and of the
    training, are chosen by a criterion first, and the choice is shown: `--by val_pseudo` needs no labels of the
    target domain, `--by val_oracle` uses them, and what it chose says so.

    The worst case over attacks is of all runs of the store (controls are no attacks) on the same networks at the same
    main radius, put together by image. Only pairs that met the same attacks are compared; the others are named.
    """
    from redteam.core.compare import Question, listing, outcomes_in
    from redteam.core.compare import compare as compared
    from redteam.core.store import Store

    _check(base, group, as_table)

    records = [
        r
        for r in Store(store).records()
        if (not attacks or r.cell.attack.name in attacks)
        and (not datasets or r.cell.task.dataset in datasets)
    ]
    if base is None:
        listed = listing(records, outcomes_in(store), by)
        if as_json:
            click.echo(json.dumps(listing_as_dict(listed), indent=2, allow_nan=False))
        else:
            show_listing(listed, by)
        return
    question = Question(metric=metric, base=base, group=group, by=by, worst=worst)
    found = compared(records, question, outcomes_in(store))
    if as_json:
        click.echo(json.dumps(as_dict(found), indent=2, allow_nan=False))
    else:
        show(found)


def _check(base: str | None, group: str | None, as_table: bool) -> None:
    """Raise `ConfigError` unless either a base or a table is asked for."""
    if as_table == (base is not None):
        got = "both" if as_table else "neither"
        raise ConfigError(f"expected --base DEFENCE, or --table for all of them without one; got {got}")
    if as_table and group is not None:
        raise ConfigError(f"group: the table is at the main radius alone; got '{group}' with --table")


def as_dict(found: Comparison) -> dict[str, object]:
    """The comparison as plain JSON values."""
    rows = [{**asdict(r), "relative": r.relative} for r in found.rows]
    picks = [asdict(p) for p in found.picks]
    return {**asdict(found.question), "rows": rows, "picks": picks, "left_out": list(found.left_out)}


def listing_as_dict(found: Listing) -> dict[str, object]:
    """The table as plain JSON values."""
    return {"lines": [asdict(line) for line in found.lines], "picks": [asdict(p) for p in found.picks]}


# ---------------------------------------------------------------- printing


def _console(width: int = 0) -> Console:
    from rich.console import Console

    return Console(width=max(126, width, shutil.get_terminal_size().columns))


def _say(console: Console, text: str) -> None:
    console.print("\n".join(textwrap.wrap(text, console.width)), markup=False, highlight=False)


def _say_picks(console: Console, picks: Sequence[Pick], by: str | None) -> None:
    for p in picks:
        labels = ", which used labels of the target domain" if p.target_labels else ""
        _say(
            console,
            f"{p.task}, {p.attack}: {p.defence} is {p.setting}: {by} {p.value:.3f} over {p.cells} cells, best of "
            f"{p.among} settings{labels}",
        )


def show(found: Comparison) -> None:
    """Print what was chosen, a table for each task, and what could not be compared."""
    from rich.table import Table

    console, q = _console(), found.question
    _say_picks(console, found.picks, q.by)
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
    for text in found.left_out:
        _say(console, f"Left out, as other attacks ran: {text}")


def show_listing(found: Listing, by: str | None) -> None:
    """Print what was chosen, and a table for each task and ball with a row for each defence."""
    from rich.table import Table

    attacks = sorted({name for line in found.lines for name in line.attacks})
    # Defence, three counts, and an interval for each number.
    console = _console(30 + 3 * 10 + 18 * (len(attacks) + 2))
    _say_picks(console, found.picks, by)
    for task, ball in dict.fromkeys((line.task, line.ball) for line in found.lines):
        lines = [line for line in found.lines if (line.task, line.ball) == (task, ball)]
        names = [name for name in attacks if any(name in line.attacks for line in lines)]
        table = Table(title=f"robust accuracy at {ball}: {task}", pad_edge=False)
        table.add_column("defence", overflow="fold")
        for title in ("accuracy", *names, "worst case", "n", "victims", "seeds"):
            table.add_column(title, justify="right", overflow="fold")
        for line in lines:
            cells = [_estimate(line.accuracy), *(_estimate(line.attacks.get(name)) for name in names)]
            table.add_row(
                line.defence, *cells, _worst(line, names), *map(str, (line.n, line.victims, line.seeds))
            )
        console.print(table)
    _say(
        console,
        "Intervals at confidence 0.95, over victims and images; seeds are pooled as cells. n: distinct test images. "
        "Worst case: images that withstand every attack. A row averaged over tasks speaks of these tasks alone. Read "
        "differences with --base, which pairs the images.",
    )


def _estimate(e: Estimate | None) -> str:
    if e is None:
        return "-"
    return f"{e.value:.3f}\n" + ("no interval" if e.low is None else f"[{e.low:.3f}, {e.high:.3f}]")


def _worst(line: Line, names: Sequence[str]) -> str:
    fewer = f"\nof {len(line.of)} of {len(names)}" if len(line.of) < len(names) else ""
    return _estimate(line.worst) + (fewer if line.worst else "")


def _numbers(r: Row) -> tuple[str, ...]:
    e = r.difference
    interval = "\nno interval" if e.low is None else f"\n[{e.low:+.3f}, {e.high:+.3f}]"
    relative = "-" if r.relative is None else f"{100 * r.relative:+.1f} %"
    unit = ("task" if e.method.endswith("tasks") else "cell") + ("s" if r.cells > 1 else "")
    return (
        f"{r.values[0]:.3f}", f"{r.values[1]:.3f}", f"{e.value:+.3f}{interval}", relative,
        f"{r.paired},\n{r.cells} {unit}",
    )  # fmt: skip
