"""The contract of threats and plug-ins: one table over everything that is installed.

A package from outside runs it with `pytest --pyargs redteam.testing.contract -k NAME`, or gathers it in a test file of
its own: `from redteam.testing.contract import *`. Each plug-in runs on the tiny target of its threat. In what a plug-in
differs it declares in its `Spec`: `deterministic`, a `source` of its own, and what makes it `small`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from redteam.core import registry
from redteam.core.artifacts import load
from redteam.core.config import build, knobs, to_json
from redteam.core.context import Context
from redteam.core.device import Device
from redteam.core.errors import ConfigError
from redteam.core.seeding import SeedPath
from redteam.core.threat import TargetType, card, of_spec, of_target, resolve, threats
from redteam.core.types import Spec

EVERY = [(kind, name) for kind in registry.GROUPS for name in registry.names(kind)]
TARGETS = [(name, entry) for name, threat in threats().items() for entry in threat.targets]


def context(seed: int = 0) -> Context:
    """A run's surroundings on the CPU, with nothing kept."""
    return Context(Device("cpu"), SeedPath(seed))


def defended_pairs() -> Iterator[tuple[str, str]]:
    """Each defence with each type of target that it fits."""
    for name in registry.names("defense"):
        spec = registry.get("defense", name)
        if spec.threat is not None:
            yield from ((name, kind) for kind in (spec.threat.target, *spec.also))


# ---------------------------------------------------------------- threats


@pytest.mark.parametrize(("room", "entry"), TARGETS, ids=[f"{name}-{e.kind}" for name, e in TARGETS])
def test_a_threat_brings_all_that_the_core_asks_of_it(room: str, entry: Any) -> None:
    """Its type of target, artifact, page, table, rules of its board, and a tiny target."""
    target = of_target(entry.kind)
    assert (target.spec.name, target.artifact.kind) == (entry.target, entry.artifact)
    assert callable(resolve(target.report)) and target.layout.columns
    assert set(target.flags) <= set(knobs(target.spec.config))
    board = threats()[room].board.read_text()
    assert f"[{entry.threat}]" in board or f"[{entry.threat}-{entry.target}]" in board
    assert target.tiny.make(context()).kind == entry.kind
    assert len(card(room)) > 100, "the room's docstring says what the threat is"


@pytest.mark.parametrize("name", sorted(threats()))
def test_what_a_threat_names_is_there(name: str) -> None:
    """Its commands and what it adds to `redteam score`."""
    threat = threats()[name]
    for command in threat.commands.values():
        assert resolve(command.at).name and command.help
    assert threat.scoring is None or resolve(threat.scoring).options


# ---------------------------------------------------------------- cards and configs


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_spec(kind: registry.Kind, name: str) -> None:
    """A frozen, slotted, keyword-only config with help for every knob, which survives JSON in each preset."""
    spec = registry.get(kind, name)
    params = spec.config.__dataclass_params__  # type: ignore[attr-defined]
    assert params.frozen and hasattr(spec.config, "__slots__"), "a config is frozen and slotted"
    fields = dataclasses.fields(spec.config)
    assert all(f.kw_only for f in fields), "a config is keyword-only"
    assert all(f.metadata.get("help") for f in fields), "every knob has its help text"
    assert "default" in spec.presets
    for preset in spec.presets.values():
        assert build(spec.config, to_json(preset.config)) == preset.config
    with pytest.raises(ConfigError, match="unknown option"):
        build(spec.config, {"no_such_knob": 1})
    assert set(spec.small) <= set(knobs(spec.config))


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_card(kind: registry.Kind, name: str) -> None:
    """A summary of one line, a source, and a threat model."""
    spec = registry.get(kind, name)
    assert 0 < len(registry.summary(kind, name)) < 120 and spec.source
    if kind != "target":
        assert "Source:" in registry.card(kind, name)
        assert spec.threat is not None and spec.threat.access and spec.threat.goal


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, n in EVERY if k != "target"])
def test_what_a_plugin_names_is_there_and_of_its_threat(kind: registry.Kind, name: str) -> None:
    """Controls share the threat and the targets of presets, baselines share a type of target, variants are settings."""
    spec = registry.get(kind, name)
    assert spec.threat is not None
    for control in spec.controls:
        other = registry.get("attack", control)
        assert other.role == "control" and other.threat is not None and other.threat.kind == spec.threat.kind
        for preset in set(spec.presets) & set(other.presets):
            # A control that states no target of its own gets the attack's.
            ours, theirs = (dict(s.presets[preset].target) for s in (spec, other))
            assert theirs in ({}, ours), (control, preset)
    for baseline in spec.baselines:
        other = registry.get("defense", baseline)
        assert other.threat is not None and other.threat.kind == spec.threat.kind
        assert {other.threat.target, *other.also} & {spec.threat.target, *spec.also}
    for variant in spec.variants:
        build(spec.config, variant, base=spec.presets["default"].config)


# ---------------------------------------------------------------- attacks


def config_of(spec: Spec, target: TargetType, variant: Mapping[str, Any], at: Any) -> Any:
    """The default preset in a variant, cut to the size of a test, as planning would resolve it."""
    small = {k: v for k, v in target.tiny.knobs.items() if k in knobs(spec.config)}
    config = build(spec.config, {**small, **spec.small, **variant}, base=spec.presets["default"].config)
    return spec.resolve(config, at) if spec.resolve else config


def attacked(
    spec: Spec, variant: Mapping[str, Any], seed: int, path: Path
) -> tuple[bytes, Any, Any, Context]:
    """Run an attack on a tiny target of its own: (the artifact's bytes, its config, the target, the context)."""
    target, ctx = of_spec(spec), context(seed)
    at = target.tiny.make(ctx)
    before = target.tiny.untouched(at)
    config = config_of(spec, target, variant, at)
    artifact = spec.run(at, config, ctx.at("attack", spec.name))
    target.check(artifact)
    assert target.tiny.untouched(at) == before, "an attack leaves its inputs as they were"
    artifact.save(path)
    return path.read_bytes(), config, at, ctx


@pytest.mark.parametrize("name", registry.names("attack"))
def test_attack(name: str, tmp_path: Path) -> None:
    """Same seed same bytes, another seed other bytes, the budget kept, the inputs untouched, the disk survived."""
    spec = registry.get("attack", name)
    assert spec.threat is not None
    differs = spec.deterministic
    for number, variant in enumerate(spec.variants or ({},)):
        first, config, at, ctx = attacked(spec, variant, 0, tmp_path / f"{number}.npz")
        assert attacked(spec, variant, 0, tmp_path / "again.npz")[0] == first, "same seed, same bytes"
        artifact = load(tmp_path / f"{number}.npz")
        artifact.save(tmp_path / "copy.npz")
        assert (tmp_path / "copy.npz").read_bytes() == first, "an artifact survives the disk"
        target = of_spec(spec)
        target.enforce(artifact, to_json(config), spec.threat.access, at)
        target.tiny.kept(artifact, at)
        if hasattr(artifact, "queries"):
            booked = ctx.ledger.spent("target").queries
            assert int(artifact.queries.sum()) + target.tiny.uncounted == booked, "the ledger's count"
        seeds = (seed for seed in (1, 2) if not differs)
        differs = (
            any(attacked(spec, variant, s, tmp_path / f"s{s}.npz")[0] != first for s in seeds) or differs
        )
    assert differs, "other seeds give other bytes, or the Spec says deterministic=True"


# ---------------------------------------------------------------- defences


@pytest.mark.parametrize(("name", "kind"), list(defended_pairs()))
def test_defense(name: str, kind: str) -> None:
    """It gives a target of the same type that says it is defended and works, and leaves the one it got as it was."""
    spec, target, ctx = registry.get("defense", name), of_target(kind), context()
    at = target.tiny.make(ctx)
    before = target.tiny.fingerprint(at)
    for variant in spec.variants or ({},):
        config = build(spec.config, {**spec.small, **variant}, base=spec.presets["default"].config)
        config = spec.told(config, target.tiny.told, at) if spec.told else config
        oracle = spec.oracle(config) if callable(spec.oracle) else spec.oracle
        assert all(isinstance(said, str) for said in oracle)
        assert spec.told is None or oracle, "what a defence is told is oracle knowledge"
        defended = target.wrap(at, spec, config, ctx.at("defense", name))
        assert defended.kind == at.kind
        assert target.tiny.fingerprint(defended) != before, "a defended target says that it is defended"
        assert target.tiny.fingerprint(at) == before
        target.tiny.use(defended, ctx)
