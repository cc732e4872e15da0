"""What the runner must know of each kind of target: its data, how it is made, defended and scored.

Planning and running are written once, against `Kind`; a new kind of target is a module here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from redteam.core.errors import ThreatMismatchError
from redteam.core.types import Spec, TargetKind

if TYPE_CHECKING:
    from redteam.artifacts import Artifact
    from redteam.core.scored import Scored


@dataclass(frozen=True)
class DataSource:
    """Where data sets are looked for, and whether they may be downloaded."""

    data_dir: str | None = None
    offline: bool = False
    download: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of target.

    spec: its target plug-in. dataset: the default one. flags: command-line flags of target knobs that
    are not `--<prefix>-<knob>`. load: `(name, source) -> dataset` with `name` and `digest`. configure:
    `(dataset, *layers) -> config`. make: `(dataset, config, ctx) -> target` with `kind` and `config`.
    pinned: `(target) -> {field: value}` of what the config names but does not hold, such as a model
    file's digest; it goes into the cell. content: the digest of a model that an attack's setting names, or
    an empty string. wrap: `(target, defence, its config, ctx) -> target`. score:
    `(artifact, cell, access, dataset, target, defended target, ctx) -> Scored`; it enforces the threat
    first. rescore: `(artifact, tables) -> Scored`. work: `(jobs, rebuild, ctx) -> Work`, for --dry-run.
    """

    spec: Spec
    dataset: str
    prefix: str
    flags: Mapping[str, str] = field(default_factory=dict)
    load: Callable[[str, DataSource], Any]
    configure: Callable[..., Any]
    make: Callable[..., Any]
    pinned: Callable[[Any], Mapping[str, str]] = lambda target: {}
    content: Callable[[str], str] = lambda text: ""
    wrap: Callable[..., Any]
    score: Callable[..., Scored]
    rescore: Callable[[Any, Any], Scored]
    work: Callable[..., Work]


@dataclass(frozen=True)
class Work:
    """The work ahead. items: amount by stage. unit: what is counted. rate: units a second, timed here, if known."""

    items: Mapping[str, float]
    unit: str
    rate: float | None


_MODULES: dict[TargetKind, str] = {
    "trainable": "redteam.threats.poisoning.seam",
    "federation": "redteam.threats.poisoning.federation.seam",
    "language-model": "redteam.threats.strings.seam",
    "text-classifier": "redteam.threats.moderation.seam",
    "agent": "redteam.threats.agents.seam",
    "classifier": "redteam.threats.evasion.seam",
}
_BY_ARTIFACT = {
    "poison": "trainable",
    "clients": "federation",
    "strings": "language-model",
    "suffixes": "text-classifier",
    "scripts": "agent",
    "perturbed": "classifier",
}


def of(target: TargetKind) -> Kind:
    """The kind by the name that threats use.

    Raises:
        ThreatMismatchError: no target of that kind can be run yet.
    """
    if target not in _MODULES:
        raise ThreatMismatchError(
            f"no target of the kind '{target}' can be run; known: {', '.join(_MODULES)}"
        )
    kind: Kind = importlib.import_module(_MODULES[target]).KIND
    return kind


def of_spec(spec: Spec) -> Kind:
    """The kind that an attack or a defence is for.

    Raises:
        ThreatMismatchError: see `of`.
    """
    if spec.threat is None:
        raise ThreatMismatchError(f"{spec.name} names no threat, so nothing can be attacked with it")
    return of(spec.threat.target)


def of_artifact(artifact: Artifact) -> Kind:
    """The kind whose scorer reads an artifact."""
    return of(_BY_ARTIFACT[artifact.kind])  # type: ignore[arg-type]
