"""`redteam attack NAME`: one attack with its controls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from redteam.cli.options import config_options, given, run_options
from redteam.core import registry
from redteam.core.config import parse_pairs, read_toml
from redteam.core.errors import ConfigError
from redteam.core.threat import of_spec
from redteam.core.types import Spec

# What the target's settings are called in a TOML file and before a -o key.
_TARGET = ("victim", "target")


def seed_options() -> list[click.Option]:
    """How often to repeat."""
    return [
        click.Option(
            ["--seeds"], type=click.IntRange(1), default=1, show_default=True, help="cells, one a seed"
        ),
        click.Option(["--seed"], type=click.IntRange(0), default=0, show_default=True, help="the first seed"),
    ]


def _request_options() -> list[click.Option]:
    return [
        click.Option(["--dataset"], default=None, help="data set; see `redteam list`  [default: the preset's]"),
        click.Option(["--preset"], default="default", show_default=True, help="a setting of the card"),
        click.Option(["--config", "config_file"], type=click.Path(dir_okay=False, path_type=Path), default=None,
                     help="TOML with tables [attack] and [victim] (or [target]); options given here win over it"),
        click.Option(["-o", "pairs"], multiple=True, metavar="KEY=VALUE",
                     help="any knob; victim.KEY or target.KEY for the target's"),
        *seed_options(),
        click.Option(["--controls"], type=click.Choice(["none", "cheap", "all"]), default="cheap",
                     show_default=True, help="which controls run beside the attack"),
        click.Option(["--defense", "defenses"], multiple=True, metavar="NAME[:K=V,...]",
                     help="put a defence before the target; repeat to compose, innermost first"),
        click.Option(["--adaptive"], is_flag=True, help="let the attack see the defended target"),
    ]  # fmt: skip


def layered(params: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(attack, target) settings: the TOML file, then -o pairs, then options, each over the one before."""
    attack: dict[str, Any] = {}
    target: dict[str, Any] = {}
    if params["config_file"] is not None:
        tables = read_toml(params["config_file"], ("attack", *_TARGET))
        for name, table in tables.items():
            if not isinstance(table, dict):
                raise ConfigError(f"{params['config_file']}: expected [{name}] to be a table, got {table!r}")
            into = target if name in _TARGET else attack
            into.update({k.replace("-", "_"): v for k, v in table.items()})
    for key, value in parse_pairs(params["pairs"]).items():
        place, _, inner = key.partition(".")
        if inner and place in _TARGET:
            target[inner] = value
        else:
            attack[key] = value
    attack.update(given(params, "attack__"))
    target.update(given(params, "target__"))
    return attack, target


class AttackGroup(click.Group):
    """One command for each registered attack, its options generated from its config."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The registered attacks and controls."""
        return registry.names("attack")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Names with the first line of their cards, without importing them."""
        with formatter.section("Attacks and controls"):
            formatter.write_dl([(n, registry.summary("attack", n)) for n in self.list_commands(ctx)])

    def get_command(self, ctx: click.Context, name: str) -> click.Command:
        """Build the command of one attack; an unknown name gets the nearest one."""
        return _command(registry.get("attack", name))


def _command(spec: Spec) -> click.Command:
    kind = of_spec(spec)
    options = [
        *_request_options(),
        *config_options(spec.config, spec.presets["default"].config, dest="attack__"),
        *config_options(kind.spec.config, None, prefix=kind.prefix, flags=kind.flags, dest="target__"),
        *run_options(),
    ]

    def run(**params: Any) -> int:
        from redteam.cli.running import execute
        from redteam.core.plan import Request, parse_defenses

        values, target = layered(params)
        request = Request(
            attack=spec.name, preset=params["preset"], dataset=params["dataset"], values=values, target=target,
            defenses=parse_defenses(params["defenses"]), controls=params["controls"],
            seeds=range(params["seed"], params["seed"] + params["seeds"]), adaptive=params["adaptive"],
        )  # fmt: skip
        return execute([request], params)

    text = (
        registry.summary("attack", spec.name)
        + f"\n\nPresets: {', '.join(spec.presets)}. Defaults shown are the default preset's; a target's "
        f"default is its data set's where that differs. `redteam show {spec.name}` prints the card."
    )
    return click.Command(spec.name, callback=run, params=list(options), help=text)


attack = AttackGroup("attack", help="Run one attack with its controls: print the rows, write the records.")
