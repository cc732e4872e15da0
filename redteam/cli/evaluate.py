"""`redteam evaluate DEFENSE`: one defence against every attack of its threat kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from redteam.cli.attack import layered, seed_options
from redteam.cli.options import run_options, with_options
from redteam.core import registry
from redteam.core.config import knobs
from redteam.core.errors import ConfigError, ThreatMismatchError, nearest
from redteam.core.types import Spec


def fitting_attacks(defense: Spec, target: str | None = None) -> list[str]:
    """Every attack and control of the defence's threat kind, on its own kind of target or on another it fits.

    Raises:
        ThreatMismatchError: none is registered, or the defence does not fit that target.
    """
    wanted = target or (defense.threat.target if defense.threat else None)
    found = []
    for name in registry.names("attack"):
        threat = registry.get("attack", name).threat
        if defense.fits(threat) and threat and threat.target == wanted:
            found.append(name)
    if not found:
        at = f" on a {target}" if target else ""
        raise ThreatMismatchError(f"no registered attack fits the defence '{defense.name}'{at}")
    return found


def fitting_baselines(defense: Spec, attacks: Sequence[str]) -> list[str]:
    """Its baselines that fit the attacks."""
    threat = registry.get("attack", attacks[0]).threat
    return [name for name in defense.baselines if registry.get("defense", name).fits(threat)]


def _known(attack: str, values: dict[str, Any]) -> dict[str, Any]:
    """The values that an attack has a knob for."""
    fields = knobs(registry.get("attack", attack).config)
    return {key: value for key, value in values.items() if key in fields}


def _check_known(attacks: Sequence[str], values: dict[str, Any]) -> None:
    """Refuse a knob that none of the attacks has.

    Raises:
        ConfigError: naming the nearest one.
    """
    fields = {name for attack in attacks for name in knobs(registry.get("attack", attack).config)}
    for key in values:
        if key not in fields:
            raise ConfigError(f"-o: no attack of this kind has the option '{key}'. {nearest(key, fields)}")


@with_options([*seed_options(), *run_options()])
@click.command()
@click.argument("name", metavar="DEFENSE[:K=V,...]")
@click.option("--dataset", default=None, help="data set; see `redteam list`")
@click.option("--target-kind", default=None, metavar="KIND",
              help="trainable, federation, ...: for a defence that fits several  [default: its own]")  # fmt: skip
@click.option("--preset", default="default", show_default=True, help="preset of every attack")
@click.option("--adaptive", is_flag=True, help="let the attacks see the defended target")
@click.option("-o", "pairs", multiple=True, metavar="KEY=VALUE",
              help="target.KEY for the target's knobs; any other for attacks that have it")  # fmt: skip
def evaluate(
    name: str, dataset: str | None, target_kind: str | None, preset: str, adaptive: bool, pairs: tuple[str, ...],
    **params: Any,
) -> int:  # fmt: skip
    """Run DEFENSE against every attack of its kind, with and without it, and beside the baselines it must beat.

    A defence with variants (see its card) runs in each of them, unless its settings choose one.
    """
    from redteam.cli.running import execute
    from redteam.core.plan import Request, parse_defenses, variants

    ((defence, settings),) = parse_defenses([name])
    spec = registry.get("defense", defence)
    attack_values, target = layered({"config_file": None, "pairs": pairs})
    attacks = fitting_attacks(spec, target_kind)
    _check_known(attacks, attack_values)
    seeds = range(params["seed"], params["seed"] + params["seeds"])
    requests = [
        Request(
            attack=attack, preset=preset, dataset=dataset, defenses=behind, seeds=seeds, controls="none",
            adaptive=adaptive and bool(behind), values=_known(attack, attack_values), target=target,
        )
        for behind in (
            (), *(((b, {}),) for b in fitting_baselines(spec, attacks)),
            *(((defence, s),) for s in variants(spec, settings)),
        )
        for attack in attacks
    ]  # fmt: skip
    return execute(requests, params)
