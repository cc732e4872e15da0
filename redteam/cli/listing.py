"""`redteam list` and `redteam show NAME`: what there is, without importing it."""

from __future__ import annotations

import click

from redteam.core import registry
from redteam.core.errors import UnknownNameError
from redteam.core.threat import card, first_line, threats

_KINDS: dict[registry.Kind, str] = {
    "attack": "Attacks and controls",
    "defense": "Defences",
    "audit": "Audits",
    "target": "Targets",
}


def _section(title: str, rows: dict[str, str]) -> None:
    click.secho(title, bold=True)
    wide = max((len(n) for n in rows), default=0)
    for name, text in rows.items():
        click.echo(f"  {name:<{wide}}  {text}")
    if not rows:
        click.echo("  none installed")


@click.command("list")
def list_() -> None:
    """List attacks, defences, audits, targets, data sets and models, one line each."""
    from redteam import data
    from redteam.learn import models
    from redteam.llm.backends import BACKENDS

    _section("Threats", {name: first_line(name) for name in threats()})
    for kind, title in _KINDS.items():
        _section(title, {n: registry.summary(kind, n) for n in registry.names(kind)})
    _section(
        "Data sets", {**data.names(), **{n: s for t in threats().values() for n, s in t.datasets.items()}}
    )
    _section("Models", models.NAMES)
    _section("Language models", {f"{name}:": text for name, text in BACKENDS.items()})
    for threat in threats().values():
        for title, lines in threat.lists.items():
            _section(title, dict(lines))


@click.command()
@click.argument("name")
def show(name: str) -> None:
    """Show the card of a plug-in (NAME or FILE.py:NAME): threat, paper, knobs, presets; or what a threat is."""
    from redteam.cli.options import knob_lines

    found = [kind for kind in _KINDS if name in registry.names(kind)]
    if (spec_in_file := registry.spec_in_file(name)) is not None:
        found = [spec_in_file.kind]
    if not found and name in threats():
        click.echo(card(name))
        return
    if not found:
        known = [n for kind in _KINDS for n in registry.names(kind)]
        raise UnknownNameError("plug-in or threat", name, [*known, *threats()])
    spec = registry.get(found[0], name)
    click.echo(registry.card(found[0], name))
    role = f", role {spec.role}" if spec.kind == "attack" or spec.role != "attack" else ""
    click.echo(f"\nKind: {spec.kind}{role}, version {spec.version}. Source key: {spec.source}.")
    if spec.threat:
        t = spec.threat
        click.echo(f"Threat: {t.kind}. Target: {' or '.join((t.target, *spec.also))}.")
        click.echo(f"  may touch: {', '.join(t.access)}\n  budget: {t.budget}")
        click.echo(f"  knows: {', '.join(t.knowledge)}\n  wants: {t.goal}")
    if spec.controls:
        click.echo(f"Controls run beside it: {', '.join(spec.controls)}")
    if spec.baselines:
        click.echo(f"Baselines that `redteam evaluate` runs beside it: {', '.join(spec.baselines)}")
    if spec.variants:
        told = "; ".join(", ".join(f"{k}={v}" for k, v in variant.items()) for variant in spec.variants)
        by = "`redteam evaluate` runs each" if spec.kind == "defense" else "each is run"
        click.echo(f"Variants; where none is chosen, {by}: {told}")
    for title, preset in spec.presets.items():
        where = f" on {preset.dataset}" if preset.dataset else ""
        victim = ", ".join(f"{k}={v}" for k, v in preset.target.items())
        click.echo(f"\nPreset {title}{where}" + (f"; victim {victim}" if victim else "") + ":")
        for knob, value, kind, text in knob_lines(preset.config):
            click.echo(f"  {knob} = {value}  ({kind}) {text}")
