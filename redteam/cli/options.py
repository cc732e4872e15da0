"""Command-line options: those generated from config dataclasses, and those that commands share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click

from redteam.core.config import describe, knobs
from redteam.core.device import available_cores
from redteam.core.files import DEFAULT_STORE

# The option of commands that read runs.
store_option = click.option(
    "--store", type=click.Path(file_okay=False, path_type=Path), default=DEFAULT_STORE, show_default=True
)


def _click_type(kind: Any) -> tuple[Any, str | None]:
    """A click type and the word for its value. What click cannot check, `redteam.core.config` does."""
    options = [a for a in get_args(kind) if a is not type(None)] or [kind]
    if get_origin(kind) is Literal:
        return click.Choice([str(a) for a in get_args(kind)]), None
    if len(options) == 1 and options[0] in (int, float):
        return options[0], None
    if get_origin(kind) is tuple:
        return str, "A,B,..."
    words = {int: "INTEGER", float: "FLOAT", str: "TEXT"}
    return str, "|".join(words[o] for o in options if o in words) or None


def config_options(
    cls: type, base: Any, *, prefix: str = "", flags: Mapping[str, str] | None = None, dest: str
) -> list[click.Option]:
    """One option for each knob of a config class, its default shown; unset ones stay None.

    base: the config whose values are shown as defaults, or None to show the class's own. prefix: put
    before each flag but those that `flags` gives. dest: put before each parameter's name.
    """
    out = []
    for name, k in knobs(cls).items():
        flag = (flags or {}).get(name, prefix + name.replace("_", "-"))
        shown = getattr(base, name) if base is not None else k.default
        shown = ",".join(map(str, shown)) if isinstance(shown, tuple) else shown
        help_text = f"{k.metadata['help']}  [default: {'none' if shown in (None, '') else shown}]"
        if k.type is bool:
            names = [f"--{flag}/--no-{flag}", f"{dest}{name}"]
            out.append(click.Option(names, default=None, help=help_text))
            continue
        kind, metavar = _click_type(k.type)
        out.append(
            click.Option(
                [f"--{flag}", f"{dest}{name}"], type=kind, default=None, metavar=metavar, help=help_text
            )
        )
    return out


def given(params: Mapping[str, Any], dest: str) -> dict[str, Any]:
    """The generated options that the user set, by knob name."""
    return {k.removeprefix(dest): v for k, v in params.items() if k.startswith(dest) and v is not None}


def knob_lines(config: Any) -> list[tuple[str, str, str, str]]:
    """(name, value, type, help) of each knob, for cards."""
    return [
        (name, str(getattr(config, name)), describe(k.type), k.metadata["help"])
        for name, k in knobs(type(config)).items()
    ]


def run_options() -> list[click.Option]:
    """Options of every command that runs cells: where, on what, how shown."""
    cores = available_cores()
    return [
        *data_options(),
        click.Option(["--store"], type=click.Path(file_okay=False, path_type=Path), default=DEFAULT_STORE,
                     show_default=True, help="folder for runs and finished stages"),
        click.Option(["--device"], default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps"),
        click.Option(["--workers"], type=click.IntRange(1), default=None,
                     help=f"cells run at once, each in its own process  [default: {cores} on the CPU, else 1]"),
        click.Option(["--threads"], type=click.IntRange(1), default=None,
                     help="torch threads when cells run one at a time  [default: REDTEAM_THREADS or 1]"),
        click.Option(["--max-seconds"], type=click.FloatRange(0, min_open=True), default=None,
                     help="stop a cell after so long; its record then says timeout"),
        click.Option(["--cap-requests"], type=click.IntRange(1), default=None,
                     help="stop a cell before it calls its models more often, over all attempts at it"),
        click.Option(["--cap-tokens"], type=click.IntRange(1), default=None,
                     help="the same for tokens in and out"),
        click.Option(["--cap-usd"], type=click.FloatRange(0, min_open=True), default=None,
                     help="the same for US dollars; needs --prices"),
        click.Option(["--prices"], type=click.Path(dir_okay=False, path_type=Path), default=None,
                     help="TOML with [models.\"NAME\"] input_per_million and output_per_million, in US dollars"),
        click.Option(["--resume"], metavar="ID", default=None,
                     help="go on with this unfinished run, or refuse if what is asked for is another"),
        click.Option(["--force"], is_flag=True, help="run cells again that have a record; their caps begin anew"),
        click.Option(["--dry-run"], is_flag=True, help="print resolved configs and the work ahead, run nothing"),
        click.Option(["--json", "as_json"], is_flag=True, help="print the records as JSON"),
        click.Option(["--quiet", "-q"], is_flag=True, help="show no progress"),
    ]  # fmt: skip


def data_options() -> list[click.Option]:
    """Where data sets come from."""
    return [
        click.Option(["--data-dir"], default=None, envvar="REDTEAM_DATA", show_envvar=True,
                     help="folder that holds data sets"),
        click.Option(["--offline"], is_flag=True, help="never download"),
        click.Option(["--download"], is_flag=True, help="allow the download that a message offered"),
    ]  # fmt: skip


def with_options(options: list[click.Option]) -> Callable[[click.Command], click.Command]:
    """Decorator: add options to a command."""

    def add(command: click.Command) -> click.Command:
        command.params.extend(options)
        return command

    return add
