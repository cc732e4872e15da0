"""The command line. Commands load when they are called, so `--help` and `list` stay instant."""

from __future__ import annotations

import signal
import sys
from typing import Any

import click

from redteam import __version__
from redteam.core.device import hush_libraries
from redteam.core.errors import InputError, RedteamError, nearest
from redteam.core.threat import Command, resolve, threats

_COMMANDS = {
    "attack": Command(
        at="redteam.cli.attack:attack", help="Run one attack with its controls and write the records."
    ),
    "evaluate": Command(
        at="redteam.cli.evaluate:evaluate", help="Run one defence against every attack of its kind."
    ),
    "sweep": Command(at="redteam.cli.sweep:sweep", help="Run every cell of a plan file."),
    "score": Command(at="redteam.cli.score:score", help="Compute a run's metrics again from its files."),
    "compare": Command(
        at="redteam.cli.compare:compare", help="Paired differences between the defences of a store."
    ),
    "report": Command(at="redteam.cli.report:report", help="Write one HTML page about a run."),
    "export": Command(at="redteam.cli.export:export", help="Write a run in the format of another tool."),
    "leaderboard": Command(
        at="redteam.cli.leaderboard:leaderboard", help="Show, build, verify or extend the boards."
    ),
    "list": Command(
        at="redteam.cli.listing:list_", help="List attacks, defences, audits, data sets and models."
    ),
    "show": Command(
        at="redteam.cli.listing:show", help="Show the card of one plug-in: threat, paper, knobs, presets."
    ),
}


def commands() -> dict[str, Command]:
    """The suite's own commands in the order of use, then those that threats bring."""
    brought = {name: c for threat in threats().values() for name, c in threat.commands.items()}
    return {**_COMMANDS, **{name: c for name, c in brought.items() if " " not in name}}


class LazyGroup(click.Group):
    """A group whose commands are imported when used; a mistyped one gets the nearest name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands."""
        return list(commands())

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import one command."""
        found = _COMMANDS.get(name) or commands().get(name)
        return resolve(found.at) if found is not None else None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Name the nearest command if there is none of that name."""
        if args and args[0] not in _COMMANDS and args[0] not in commands() and not args[0].startswith("-"):
            raise click.UsageError(f"unknown command '{args[0]}'. {nearest(args[0], commands())}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Help lines without importing the commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help) for name, command in commands().items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="redteam")
def cli() -> None:
    """Benchmark suite for adversarial machine learning.

    Attacks run against the defences that claim to stop them; one scorer judges; every result is a
    record; the leaderboards are rebuilt from records.
    """


def main(args: list[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done; 1 the run failed; 2 the input was wrong; 130 Ctrl-C."""
    hush_libraries()
    # What `timeout` and schedulers send: stop as Ctrl-C does, workers and all.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = cli.main(args=args, prog_name="redteam", standalone_mode=False)
    except click.exceptions.Abort:
        click.echo(
            "stopped; finished cells and stages are kept: run the same command again to go on", err=True
        )
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except InputError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    except RedteamError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)
