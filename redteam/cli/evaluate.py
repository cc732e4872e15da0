"""`redteam evaluate DEFENSE`: one defence against every attack of its threat kind."""

from __future__ import annotations

from typing import Any

import click

from redteam import registry
from redteam.cli.attack import seed_options
from redteam.cli.options import run_options, with_options
from redteam.errors import ThreatMismatchError
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


@with_options([*seed_options(), *run_options()])
@click.command()
@click.argument("name", metavar="DEFENSE[:K=V,...]")
@click.option("--dataset", default=None, help="data set; see `redteam list`")
@click.option("--preset", default="default", show_default=True, help="preset of every attack")
@click.option("--adaptive", is_flag=True, help="let the attacks see the defended target")
def evaluate(name: str, dataset: str | None, preset: str, adaptive: bool, **params: Any) -> int:
    """Run DEFENSE against every attack of its kind, with and without it, and print one table each."""
    from redteam.cli.running import execute
    from redteam.plan import Request, parse_defenses

    defenses = parse_defenses([name])
    seeds = range(params["seed"], params["seed"] + params["seeds"])
    requests = [
        Request(
            attack=attack, preset=preset, dataset=dataset, defenses=behind, seeds=seeds, controls="none",
            adaptive=adaptive and bool(behind),
        )
        for behind in ((), defenses)
        for attack in fitting_attacks(registry.get("defense", defenses[0][0]))
    ]  # fmt: skip
    return execute(requests, params)
