"""From what the user asked to the cells that will run: names resolved, configs checked, ids known.

Everything that can be wrong with the input is found here, before any work starts.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from redteam.core import registry
from redteam.core.config import build, convert, knobs, parse_pairs, to_json
from redteam.core.context import Context
from redteam.core.device import Device
from redteam.core.errors import ConfigError, DataError, ThreatMismatchError, UnknownNameError, nearest
from redteam.core.files import load_toml
from redteam.core.hashing import digest_json
from redteam.core.record import Cell, DefensePlugin, Plugin, TaskInfo
from redteam.core.seeding import SeedPath
from redteam.core.threat import DataSource, TargetType, of_spec
from redteam.core.types import Preset, Spec

Controls = Literal["none", "cheap", "all"]


@dataclass(frozen=True)
class Request:
    """One attack with its controls, as asked for. Values may be text; they are converted here."""

    attack: str
    preset: str = "default"
    dataset: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    target: Mapping[str, Any] = field(default_factory=dict)
    defenses: Sequence[tuple[str, Mapping[str, Any]]] = ()
    seeds: Sequence[int] = (0,)
    controls: Controls = "cheap"
    adaptive: bool = False


@dataclass(frozen=True)
class Job:
    """One cell to run, the name its data set is loaded by, its role, and (kind, `FILE.py:NAME`) of file plug-ins."""

    cell: Cell
    dataset: str
    role: Literal["attack", "control", "baseline", "audit"]
    files: tuple[tuple[registry.Kind, str], ...] = ()


def preset_of(spec: Spec, name: str) -> Preset:
    """A preset by name.

    Raises:
        UnknownNameError: the plug-in has none of that name.
    """
    if name not in spec.presets:
        raise UnknownNameError(f"preset of {spec.name}", name, spec.presets)
    return spec.presets[name]


def plan(request: Request, source: DataSource, device: Device) -> list[Job]:
    """The attack's cells first, then its controls', for every seed.

    Raises:
        InputError: any name, option, class, count or combination that does not fit.
    """
    spec = registry.get("attack", request.attack)
    preset = preset_of(spec, request.preset)
    _check_defenses(spec, request.defenses)
    configs = [
        build(spec.config, v, base=preset.config, where=spec.name) for v in variants(spec, request.values)
    ]
    kind = of_spec(spec)
    name = request.dataset or preset.dataset or kind.dataset
    dataset = kind.dataset_named(name, source)
    target = kind.spec.run(
        dataset, kind.configure(dataset, preset.target, request.target), Context(device, SeedPath(0))
    )
    if request.adaptive and not request.defenses:
        raise ConfigError("--adaptive: expected at least one --defense for the attack to adapt to")
    specs = [(spec, _resolved(spec, config, target)) for config in configs]
    for control in _controls(spec, request.controls):
        shared = {k: v for k, v in to_json(configs[0]).items() if k in knobs(control.config)}
        specs.append((control, _resolved(control, build(control.config, shared), target)))
    task = _task(dataset, target, kind)
    jobs = []
    told = {**_asked(request.values), **_known(to_json(specs[0][1]))}
    for (one, settings), seed in itertools.product(specs, request.seeds):
        defenses = [
            _defense(name, values, {**told, **_known(to_json(settings))}, target)
            for name, values in request.defenses
        ]
        blind = defenses and not (request.adaptive or one.knows(settings, [d.name for d in defenses]))
        cell = Cell(
            threat=one.threat.kind if one.threat else "", knowledge="oblivious" if blind else "adaptive",
            seed=seed, task=task,
            attack=_plugin(one, settings, kind), defenses=tuple(defenses),
        )  # fmt: skip
        jobs.append(Job(cell, name, one.role, _files(one, [n for n, _ in request.defenses])))
    return list({job.cell.id: job for job in jobs}.values())


def _files(attack: Spec, defenses: Sequence[str]) -> tuple[tuple[registry.Kind, str], ...]:
    """Those of the plug-ins that came from files, as another process finds them."""
    specs = [attack, *(registry.get("defense", name) for name in defenses)]
    return tuple((s.kind, found.ref) for s in specs if (found := registry.file_of(s)) is not None)


def _sha256(spec: Spec) -> str | None:
    found = registry.file_of(spec)
    return found.sha256 if found is not None else None


def variants(spec: Spec, values: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The settings to run: `values` with each of the plug-in's variants, or alone if they choose one themselves."""
    if any(key in values for variant in spec.variants for key in variant):
        return [values]
    return [{**variant, **values} for variant in spec.variants] or [values]


def _resolved(spec: Spec, config: Any, target: Any) -> Any:
    if spec.threat is None or spec.threat.target != target.kind:
        wanted = spec.threat.target if spec.threat else "nothing"
        raise ThreatMismatchError(
            f"{spec.name} attacks a {wanted}; this data set and model give a {target.kind}"
        )
    if spec.resolve is None and hasattr(config, "RESOLVE"):
        raise ConfigError(
            f"{spec.name}: some of its settings are filled in from the target, and its Spec does not say how; give it "
            f"resolve={config.RESOLVE}, or a function of its own that calls that"
        )
    return spec.resolve(config, target) if spec.resolve else config


def _controls(spec: Spec, which: Controls) -> list[Spec]:
    """The attack's own controls; with `all`, every control of its threat on its type of target."""
    if which == "none":
        return []
    names = list(spec.controls)
    if which == "all" and spec.role == "attack":
        names += [n for n in registry.names("attack") if n not in names and _is_control(n, spec)]
    return [registry.get("attack", name) for name in names]


def _is_control(name: str, of: Spec) -> bool:
    other = registry.get("attack", name)
    if other.threat is None or of.threat is None or other.role != "control":
        return False
    return (other.threat.kind, other.threat.target) == (of.threat.kind, of.threat.target)


def _plugin(spec: Spec, config: Any, kind: TargetType) -> Plugin:
    settings, sha256 = to_json(config), _sha256(spec)
    # A model that the config only names, such as a proxy, is part of what runs: its content is in the digest.
    named = {k: c for k, v in settings.items() if isinstance(v, str) and (c := kind.content(v))}
    digest = digest_json(
        [spec.name, spec.version, settings, *([named] if named else []), *([sha256] if sha256 else [])]
    )
    return Plugin(name=spec.name, version=spec.version, config=settings, digest=digest, sha256=sha256)


def _asked(values: Mapping[str, Any]) -> dict[str, Any]:
    """The budget as the user gave it: what defences are told beside a control that has none of its own."""
    return {"budget": float(values["budget"])} if values.get("budget") is not None else {}


def _known(settings: Mapping[str, Any]) -> dict[str, Any]:
    """An attack's settings but for a budget of zero, which tells nobody anything."""
    return {k: v for k, v in settings.items() if k != "budget" or v != 0}


def _check_defenses(attack: Spec, defenses: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Refuse a defence that is for other attacks.

    Raises:
        UnknownNameError, ThreatMismatchError: see above.
    """
    for name, _ in defenses:
        spec = registry.get("defense", name)
        if not spec.fits(attack.threat):
            sides = [
                f"{s.threat.kind} of a {' or '.join((s.threat.target, *s.also))}" if s.threat else "nothing"
                for s in (spec, attack)
            ]
            raise ThreatMismatchError(
                f"the defence '{name}' is for {sides[0]}, the attack '{attack.name}' is {sides[1]}; "
                "see `redteam list` for what goes together"
            )


def _defense(name: str, values: Mapping[str, Any], attack: Mapping[str, Any], target: Any) -> DefensePlugin:
    """A defence as the cell holds it, with what it is told of the attack."""
    spec = registry.get("defense", name)
    settings = dict(values)
    preset = preset_of(spec, str(settings.pop("preset", "default")))
    config = build(spec.config, settings, base=preset.config, where=spec.name)
    if spec.told is not None:
        config = spec.told(config, attack, target)
    told = spec.oracle(config) if callable(spec.oracle) else spec.oracle
    return DefensePlugin(
        name=spec.name, version=spec.version, config=to_json(config), oracle=told, sha256=_sha256(spec)
    )


def _task(dataset: Any, target: Any, kind: TargetType) -> TaskInfo:
    settings = to_json(target.config)
    model = settings.pop("model")
    return TaskInfo(
        dataset=dataset.name,
        digest=dataset.digest,
        target=kind.spec.name,
        version=kind.spec.version,
        model=model,
        config={**settings, **kind.pinned(target)},
    )


def rebuild(job: Job, source: DataSource, ctx: Context) -> tuple[Any, Any, Any]:
    """The data set, the undefended target and the attack's config of a planned cell.

    Raises:
        DataError: the data, a plug-in's file or what the cell pins of the target is no longer what was planned on.
    """
    read_files(job)
    attack = registry.get("attack", job.cell.attack.name)
    kind, task = of_spec(attack), job.cell.task
    dataset = kind.dataset_named(job.dataset, source)
    if dataset.digest != task.digest:
        raise DataError(
            f"'{job.dataset}' changed: expected content digest {task.digest[:16]}..., "
            f"got {dataset.digest[:16]}...; plan the run again"
        )
    fields = knobs(kind.spec.config)
    settings = {k: v for k, v in task.config.items() if k in fields}
    target = kind.spec.run(dataset, build(kind.spec.config, {**settings, "model": task.model}), ctx)
    for name, value in kind.pinned(target).items():
        if task.config.get(name) != value:
            raise DataError(
                f"{task.model}: {name} changed since planning: was {task.config.get(name)}, is {value}"
            )
    return dataset, target, build(attack.config, job.cell.attack.config)


def read_files(job: Job) -> None:
    """Read the plug-ins that lie in files, in whichever process this is.

    Raises:
        DataError: a file is no longer what was planned on.
    """
    planned = {("attack", job.cell.attack.name): job.cell.attack.sha256}
    planned |= {("defense", d.name): d.sha256 for d in job.cell.defenses}
    for kind, ref in job.files:
        spec = registry.get(kind, ref)
        if planned.get((kind, spec.name)) != _sha256(spec):
            raise DataError(f"{ref} changed since planning; plan the run again")


_RUN_KEYS: dict[str, Any] = {
    "attack": str, "preset": str, "dataset": str, "options": dict, "victim": dict, "target": dict,
    "defenses": tuple[str, ...], "seeds": int, "controls": Controls, "adaptive": bool, "grid": dict,
}  # fmt: skip


def read_plan(path: Path) -> list[Request]:
    """Requests from a TOML plan: `[[run]]` tables, each with an optional `grid` of lists: of the attack's options, and
    of `dataset`, of `defenses` (lists of names) and of the target's knobs (`target.KEY`).

    Raises:
        ConfigError: no such file, not TOML, or a key or value that does not fit.
    """
    content = load_toml(path)
    tables = content.get("run")
    if set(content) != {"run"} or not isinstance(tables, list) or not tables:
        raise ConfigError(
            f"{path}: expected one or more [[run]] tables and nothing else, got {sorted(content)}"
        )
    return [request for table in tables for request in _requests(table, path)]


def parse_defenses(texts: Sequence[str]) -> tuple[tuple[str, dict[str, str]], ...]:
    """`name` or `name:key=value,key=value` to names and settings; a name may be `FILE.py:NAME`."""
    parts = [registry.split_settings(text) for text in texts]
    return tuple((name, parse_pairs(tuple(p for p in pairs.split(",") if p))) for name, pairs in parts)


def _requests(table: Any, path: Path) -> list[Request]:
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: expected [[run]] to be a table, got {table!r}")
    for key, value in table.items():
        if key not in _RUN_KEYS:
            raise ConfigError(f"{path}: unknown key '{key}' in [[run]]. {nearest(key, _RUN_KEYS)}")
        if _RUN_KEYS[key] is not dict:
            table = {**table, key: convert(f"{path}: {key}", value, _RUN_KEYS[key])}
        elif not isinstance(value, dict):
            raise ConfigError(f"{path}: {key}: expected a table, got {value!r}")
    if "attack" not in table:
        raise ConfigError(f"{path}: a [[run]] table lacks its `attack`")
    if table.get("seeds", 1) < 1:
        raise ConfigError(f"{path}: seeds: expected at least 1, got {table['seeds']}")
    grid = table.get("grid", {})
    if not all(isinstance(v, list) and v for v in grid.values()):
        raise ConfigError(f"{path}: grid: expected a list of values for each option, got {grid!r}")
    return [
        _at(table, dict(zip(grid, point, strict=True)), path) for point in itertools.product(*grid.values())
    ]


def _at(table: dict[str, Any], point: Mapping[str, Any], path: Path) -> Request:
    """One point of a grid: `dataset`, `defenses`, `target.KEY` for the target, and the attack's own options."""
    behind = point.get("defenses", table.get("defenses", ()))
    own = {k: v for k, v in point.items() if k not in ("dataset", "defenses") and not k.startswith("target.")}
    target = {k.removeprefix("target."): v for k, v in point.items() if k.startswith("target.")}
    return Request(
        attack=table["attack"],
        preset=table.get("preset", "default"),
        dataset=point.get("dataset", table.get("dataset")),
        values={**table.get("options", {}), **own},
        target={**table.get("victim", {}), **table.get("target", {}), **target},
        defenses=parse_defenses(convert(f"{path}: grid: defenses", behind, tuple[str, ...])),
        seeds=range(table.get("seeds", 1)),
        controls=table.get("controls", "cheap"),
        adaptive=table.get("adaptive", False),
    )
