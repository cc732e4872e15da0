"""`redteam export FORMAT ...`: a run in the format of another tool, or a data set as a file."""

from __future__ import annotations

from pathlib import Path

import click

from redteam.cli.options import store_option
from redteam.core.threat import resolve, threats


@click.group()
def export() -> None:
    """Write a run in the format of another tool, or a data set as a file."""


@export.command()
@click.argument("run")
@store_option
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=None,
              help="where to write it  [default: jailbreakbench.json in the run's folder]")  # fmt: skip
@click.option("--attack-type", type=click.Choice(["white_box", "black_box", "transfer", "manual"]),
              default="black_box", show_default=True, help="the benchmark's word for the access")  # fmt: skip
def jailbreakbench(run: str, store: Path, out: Path | None, attack_type: str) -> None:
    """Write RUN (a folder, or the start of an id) as a JailbreakBench artifact.

    RUN must have made adversarial strings for a language model. The verdicts are this suite's.
    """
    from redteam.core.files import write_text
    from redteam.core.store import Store
    from redteam.integrations.jailbreakbench import of_run, to_json

    folder = Store(store).locate(run)
    path = out or folder / "jailbreakbench.json"
    write_text(path, to_json(of_run(folder, attack_type)))  # type: ignore[arg-type]
    click.echo(str(path))


for _threat in threats().values():
    for _name, _command in _threat.commands.items():
        if _name.startswith("export "):
            export.add_command(resolve(_command.at))
