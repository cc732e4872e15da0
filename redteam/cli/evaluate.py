"""`redteam evaluate DEFENSE`: one defence against every attack of its threat kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from redteam import registry
from redteam.cli.attack import layered, seed_options
from redteam.cli.options import run_options, with_options
from redteam.config import knobs
from redteam.errors import ConfigError, ThreatMismatchError, nearest
from redteam.types import Spec


def fitting_attacks(defense: Spec) -> list[str]:
    """Every attack and control of the defence's threat kind and target.

    Raises:
        ThreatMismatchError: none is registered.
    """
    found = []
    for name in registry.names("attack"):
        threat = registry.get("attack", name).threat
        if (
            threat
            and defense.threat
            and (threat.kind, threat.target) == (defense.threat.kind, defense.threat.target)
        ):
            found.append(name)
    if not found:
        raise ThreatMismatchError(f"no registered attack fits the defence '{defense.name}'")
    return found


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
@click.option("--preset", default="default", show_default=True, help="preset of every attack")
@click.option("--adaptive", is_flag=True, help="let the attacks see the defended target")
@click.option("-o", "pairs", multiple=True, metavar="KEY=VALUE",
              help="target.KEY for the target's knobs; any other for attacks that have it")  # fmt: skip
def evaluate(
    name: str, dataset: str | None, preset: str, adaptive: bool, pairs: tuple[str, ...], **params: Any
) -> int:
    """Run DEFENSE against every attack of its kind, with and without it, and beside the baselines it must beat.

    A defence with variants (see its card) runs in each of them, unless its settings choose one.
    """
    from redteam.cli.running import execute
    from redteam.plan import Request, parse_defenses, variants

    ((defence, settings),) = parse_defenses([name])
    spec = registry.get("defense", defence)
    attack_values, target = layered({"config_file": None, "pairs": pairs})
    attacks = fitting_attacks(spec)
    _check_known(attacks, attack_values)
    seeds = range(params["seed"], params["seed"] + params["seeds"])
    requests = [
        Request(
            attack=attack, preset=preset, dataset=dataset, defenses=behind, seeds=seeds, controls="none",
            adaptive=adaptive and bool(behind), values=_known(attack, attack_values), target=target,
        )
        for behind in ((), *(((b, {}),) for b in spec.baselines), *(((defence, s),) for s in variants(spec, settings)))
        for attack in attacks
    ]  # fmt: skip
    return execute(requests, params)
