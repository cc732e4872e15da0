"""The command line. Commands load when they are called, so `--help` and `list` stay instant."""

from __future__ import annotations

import importlib
import signal
import sys
from typing import Any

import click

from redteam import __version__
from redteam.core.device import hush_libraries
from redteam.core.errors import InputError, RedteamError, nearest

# command: (module, attribute, one line of help)
_COMMANDS = {
    "attack": ("redteam.cli.attack", "attack", "Run one attack with its controls and write the records."),
    "evaluate": ("redteam.cli.evaluate", "evaluate", "Run one defence against every attack of its kind."),
    "sweep": ("redteam.cli.sweep", "sweep", "Run every cell of a plan file."),
    "score": ("redteam.cli.score", "score", "Compute a run's metrics again from its files."),
    "compare": ("redteam.cli.compare", "compare", "Paired differences between the defences of a store."),
    "report": ("redteam.cli.report", "report", "Write one HTML page about a run."),
    "export": ("redteam.cli.export", "export", "Write a run in the format of another tool."),
    "leaderboard": ("redteam.cli.leaderboard", "leaderboard", "Show, build, verify or extend the boards."),
    "list": ("redteam.cli.listing", "list_", "List attacks, defences, audits, data sets and models."),
    "show": ("redteam.cli.listing", "show", "Show the card of one plug-in: threat, paper, knobs, presets."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when used; a mistyped one gets the nearest name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order of use."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import one command."""
        if name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Name the nearest command if there is none of that name."""
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"unknown command '{args[0]}'. {nearest(args[0], _COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Help lines without importing the commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in _COMMANDS.items()])


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
