"""The seam: everything the core asks of a threat, and the threats that are installed.

A threat is a room of its own, here or in a package from outside, that offers one `Threat` under the entry-point group
`redteam.threats`. The `Threat` is light: what is heavy stands in a `TargetType`, which it names as `"module:NAME"` and
which is imported when it is used, so that listing what there is stays instant. The core names no threat.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redteam.core import registry
from redteam.core.errors import ArtifactError, ConfigError, ThreatMismatchError
from redteam.core.types import Spec, TargetKind

if TYPE_CHECKING:
    from redteam.core.context import Context
    from redteam.core.pairing import Pairing
    from redteam.core.scored import Scored

# `package.module:NAME`, imported when it is used.
Ref = str


@dataclass(frozen=True)
class DataSource:
    """Where data sets are looked for, and whether they may be downloaded."""

    data_dir: str | None = None
    offline: bool = False
    download: bool = False


@dataclass(frozen=True)
class Work:
    """The work ahead. items: amount by stage. unit: what is counted. rate: units a second, timed here, if known."""

    items: Mapping[str, float]
    unit: str
    rate: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TableLayout:
    """How the terminal tables records. columns: four numbers with intervals fit a line. goal: what of the attack's
    config all rows share. budget: the knob shown beside each attack. base: (label, metric) of a line below the table.
    shown: knobs of the attack that stand behind its name. together: whether all defences share one table, in a column
    of their own, headed `behind`. defended: the columns of a table with defences in it, where those are others."""

    columns: tuple[str, ...]
    goal: tuple[str, ...] = ()
    budget: str = "budget"
    base: tuple[str, str] | None = None
    shown: tuple[str, ...] = ()
    together: bool = False
    behind: str = "behind"
    defended: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiny:
    """What the contract test (`redteam.testing.contract`) runs plug-ins on.

    make: `(ctx) -> target`, made afresh and small enough for a test. untouched: `(target) -> digest` of what an
    attack must leave as it was. use: `(defended target, ctx)`, which raises if it does not work. fingerprint:
    `(target) -> what decides its answers`. kept: `(artifact, target)`, which raises for what only the scorer
    holds it to. uncounted: queries of an attack that its artifact does not count. knobs: settings that every
    attack takes which has such a knob. told: what a defence is told of an attack.
    """

    make: Callable[[Context], Any]
    untouched: Callable[[Any], str]
    use: Callable[[Any, Context], None]
    fingerprint: Callable[[Any], Any] = lambda target: target.fingerprint()
    kept: Callable[[Any, Any], None] = lambda artifact, target: None
    uncounted: int = 0
    knobs: Mapping[str, Any] = field(default_factory=dict)
    told: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetType:
    """One type of target, and what becomes of attacks on it.

    spec: its plug-in, whose `run` makes it of `(dataset, config, ctx)`. artifact: the class of what attacks hand
    over. dataset: the default one. prefix, flags: its knobs are options `--<prefix><knob>`, but for those in flags.
    load: `(name, source) -> dataset` with `name` and `digest`. configure: `(dataset, *layers) -> config`, the last
    layer on top. pinned: `(target) -> {field: value}` of what the config names but does not hold, such as a model
    file's digest; it goes into the cell. content: the digest of a model that an attack's setting names, or an empty
    string. wrap: `(target, defence, its config, ctx) -> target`. enforce: `(artifact, the attack's config, access,
    target)`, which raises where an artifact is not what its cell planned. score: `(artifact, cell, access, dataset,
    target, defended target, ctx) -> Scored`. rescore: `(artifact, tables) -> Scored`. work: `(jobs, rebuild, ctx)
    -> Work`, for --dry-run. report: where the page is made, `(run folder, records beside it, dataset or None) ->
    HTML`. shows_data: whether the page shows the data set. layout: how the terminal tables it. pairing: how its
    cells compare by example. tiny: what the contract test runs plug-ins on. offers: the module that integrations
    use of it.
    """

    spec: Spec
    artifact: type[Any]
    dataset: str
    prefix: str
    flags: Mapping[str, str] = field(default_factory=dict)
    load: Callable[[str, DataSource], Any]
    configure: Callable[..., Any]
    pinned: Callable[[Any], Mapping[str, str]] = lambda target: {}
    content: Callable[[str], str] = lambda text: ""
    wrap: Callable[[Any, Spec, Any, Context], Any] = lambda at, spec, config, ctx: spec.run(at, config, ctx)
    enforce: Callable[[Any, Mapping[str, Any], Sequence[str], Any], None] = lambda *given: None
    score: Callable[..., Scored]
    rescore: Callable[[Any, Any], Scored]
    work: Callable[..., Work]
    report: Ref
    shows_data: bool = False
    layout: TableLayout
    pairing: Pairing | None = None
    tiny: Tiny
    offers: Any = None

    def dataset_named(self, name: str, source: DataSource) -> Any:
        """A data set, kept in memory for the next cell that names it."""
        return _loaded(self.load, name, source)

    def check(self, artifact: Any) -> None:
        """Raise `ArtifactError` unless an artifact is of the kind that attacks on this target hand over."""
        if not isinstance(artifact, self.artifact):
            got = getattr(artifact, "kind", type(artifact).__name__)
            raise ArtifactError(
                f"expected an artifact of kind '{self.artifact.kind}', got one of kind '{got}'"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetEntry:
    """A type of target, named without importing it.

    kind: what threat models call it, such as `trainable`. threat, target: `cell.threat` and `task.target` of its
    records. artifact: the kind of its artifacts. type: where its `TargetType` is.
    """

    kind: TargetKind
    threat: str
    target: str
    artifact: str
    type: Ref


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command that a threat brings. at: the click command. help: one line."""

    at: Ref
    help: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Threat:
    """One room. Its first docstring line says what it is.

    name: the room's. targets: the types of targets it attacks. board: the file with the rules of its boards. datasets:
    data sets that it alone loads, name or pattern to a line. claims: what a data set's name means to it alone, in
    words such as `a pair of domains`, or None. lists: further sections of `redteam list`, title to names
    and lines. commands: by name; `export NAME` is one of `redteam export`. scoring: click options that `redteam score`
    gains, with what they do, as a `ScoreOptions`.
    """

    name: str
    targets: tuple[TargetEntry, ...]
    board: Path
    datasets: Mapping[str, str] = field(default_factory=dict)
    claims: Callable[[str], str | None] = lambda name: None
    lists: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    commands: Mapping[str, Command] = field(default_factory=dict)
    scoring: Ref | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreOptions:
    """What a threat adds to `redteam score RUN`. options: click options. run: `(artifact, tables, values, as_json)`,
    called instead of the plain check where any of the options is given."""

    options: tuple[Any, ...]
    run: Callable[[Any, Any, Mapping[str, Any], bool], None]


@lru_cache(maxsize=4)
def _loaded(load: Callable[[str, DataSource], Any], name: str, source: DataSource) -> Any:
    return load(name, source)


# ---------------------------------------------------------------- what is installed


@cache
def threats() -> Mapping[str, Threat]:
    """The installed threats by name.

    Raises:
        ConfigError: an entry point leads to something else, or two threats claim one thing.
    """
    found: dict[str, Threat] = {}
    for name, entry in registry.entries("redteam.threats").items():
        threat = entry.load()
        if not isinstance(threat, Threat) or threat.name != name:
            raise ConfigError(f"{entry.value} is not the Threat called '{name}'")
        found[name] = threat
    _check_claims(found)
    return found


def _check_claims(found: Mapping[str, Threat]) -> None:
    """Refuse two threats that claim one type of target, one kind of records, one kind of artifacts or one command."""
    claimed: dict[tuple[str, ...], str] = {}
    for name, threat in found.items():
        claims = [("command", command) for command in threat.commands]
        for e in threat.targets:
            claims += [("target", e.kind), ("records", e.threat, e.target), ("artifacts", e.artifact)]  # type: ignore[list-item]
        for claim in claims:
            other = claimed.setdefault(claim, name)
            if other != name:
                raise ConfigError(
                    f"the threats '{other}' and '{name}' both claim {' '.join(claim)}; uninstall one"
                )


def resolve(ref: Ref) -> Any:
    """What a reference names."""
    module, _, name = ref.partition(":")
    return getattr(importlib.import_module(module), name)


def _entries() -> list[TargetEntry]:
    return [entry for name in sorted(threats()) for entry in threats()[name].targets]


def _find(**wanted: Any) -> TargetType | None:
    """The type of target whose entry has these fields."""
    for entry in _entries():
        if all(getattr(entry, name) == value for name, value in wanted.items()):
            found = resolve(entry.type)
            if not isinstance(found, TargetType):
                raise ConfigError(f"{entry.type} is not the TargetType of '{entry.kind}'")
            return found
    return None


def of_target(kind: TargetKind) -> TargetType:
    """The type of target by the name that threat models use.

    Raises:
        ThreatMismatchError: no installed threat has it.
    """
    if (found := _find(kind=kind)) is not None:
        return found
    known = ", ".join(entry.kind for entry in _entries())
    raise ThreatMismatchError(f"no target of the kind '{kind}' can be run; known: {known}")


def of_spec(spec: Spec) -> TargetType:
    """The type of target that an attack or a defence is for.

    Raises:
        ThreatMismatchError: see `of_target`.
    """
    if spec.threat is None:
        raise ThreatMismatchError(f"{spec.name} names no threat, so nothing can be attacked with it")
    return of_target(spec.threat.target)


def of_record(threat: str, target: str) -> TargetType | None:
    """The type of target of records with this `cell.threat` and `task.target`; None if no threat owns them."""
    return _find(threat=threat, target=target)


def of_artifact(kind: str | None, where: object) -> TargetType:
    """The type of target whose attacks hand over artifacts of a kind. where: for the message.

    Raises:
        ArtifactError: none.
    """
    if (found := _find(artifact=kind)) is not None:
        return found
    known = ", ".join(entry.artifact for entry in _entries())
    raise ArtifactError(f"{where} holds an artifact of kind {kind!r}; this version reads: {known}")


def pairing_of(threat: str, target: str) -> Pairing | None:
    """How cells with this `cell.threat` and `task.target` compare by example; None where they do not."""
    found = of_record(threat, target)
    return found.pairing if found is not None else None


def claimed(dataset: str) -> str | None:
    """What a data set's name means to the one threat that loads it, in words; None if it means nothing to any."""
    found = (threat.claims(dataset) for threat in threats().values())
    return next((what for what in found if what is not None), None)


def card(name: str) -> str:
    """What a threat's room says of it."""
    module = sys.modules[registry.entries("redteam.threats")[name].module]
    return (module.__doc__ or "").strip()


def first_line(name: str) -> str:
    """A threat in one line."""
    return card(name).partition("\n")[0]
