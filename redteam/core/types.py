"""The nouns of the suite: threat models, presets, published numbers and plug-in cards. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

Role = Literal["attack", "control", "baseline", "audit"]
Knowledge = Literal["adaptive", "oblivious"]
# What a threat calls a type of its targets, such as `trainable`; each threat states its own.
TargetKind = str


class Artifact(Protocol):
    """What an attack hands to the scorer. kind: a word that no other threat's artifacts have."""

    kind: ClassVar[str]

    def save(self, path: Path) -> str:
        """Write to `path` (`.npz`, by `redteam.core.arrays.save_arrays`). Returns the file's sha256."""
        ...

    @classmethod
    def of(cls, meta: Mapping[str, Any], arrays: Mapping[str, Any]) -> Artifact:
        """From what `save` wrote."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreatModel:
    """The threat model, as data.

    kind: the row of the design table (`poisoning`, `evasion`, ...). access: what the attacker may
    touch. budget: what bounds it, and the unit. knowledge: what it knows. goal: what it wants.
    """

    kind: str
    target: TargetKind
    access: tuple[str, ...]
    budget: str
    knowledge: tuple[str, ...]
    goal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A named setting: the plug-in's own config, and the fields of the target it goes with."""

    config: Any
    target: Mapping[str, Any] = field(default_factory=dict)
    dataset: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One number the paper states, and the cell it holds for.

    value is None where nobody could check it. when: dotted cell fields and the values they must have,
    such as {"attack.config.budget": 1000, "task.dataset": "cifar10"}.
    """

    metric: str
    value: float | None
    source: str
    where: str
    when: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One plug-in: what the registry hands out.

    run: `(target, config, ctx) -> Artifact` for attacks, `(target, config, ctx) -> Target` for
    defences, `(dataset, config, ctx) -> Target` for targets. resolve: fills in what depends on the
    target (class pairs, counts) before the cell is hashed: `(config, target) -> config`.
    estimate: `(config, target) -> {stage: images trained on}` for --dry-run.
    presets: by name; none given: `default` alone, the config as it is without arguments.
    variants: settings of which each is run where none of their keys is given (of a defence, by `evaluate`).
    adaptive: an attack that knows the defence by design, and meets the defended target in every cell; or a function
    `(its config, names of the defences)` that says whether it is made for what stands there.
    baselines: of a defence, those that `evaluate` runs beside it. oracle: what a defence is told that a defender
    would not know, or a function of its config that says so. also: further kinds of targets that a defence fits.
    told: fills in what a defence is told of an attack before the cell is hashed:
    `(config, the attack's resolved config as JSON, target) -> config`; `oracle` then says what that was.
    source: a key of docs/bibliography.md; of a plug-in from outside, a reference of its own such as a DOI, or `none`.
    deterministic: other seeds may give the same bytes, as it draws nothing or leaves that to a model. small: settings
    that the contract test runs it in, which cut its own work to the size of a test.
    """

    name: str
    kind: Literal["target", "attack", "defense", "audit"]
    version: str
    config: type
    run: Callable[..., Any]
    source: str
    presets: Mapping[str, Preset] = field(default_factory=dict)
    threat: ThreatModel | None = None
    role: Role = "attack"
    controls: tuple[str, ...] = ()
    resolve: Callable[[Any, Any], Any] | None = None
    estimate: Callable[[Any, Any], dict[str, float]] | None = None
    published: tuple[Published, ...] = ()
    oracle: tuple[str, ...] | Callable[[Any], tuple[str, ...]] = ()
    variants: tuple[Mapping[str, Any], ...] = ()
    adaptive: bool | Callable[[Any, Sequence[str]], bool] = False
    baselines: tuple[str, ...] = ()
    also: tuple[TargetKind, ...] = ()
    told: Callable[[Any, Mapping[str, Any], Any], Any] | None = None
    deterministic: bool = False
    small: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.presets:
            object.__setattr__(self, "presets", {"default": Preset(config=self.config())})

    def knows(self, config: Any, defenses: Sequence[str]) -> bool:
        """Whether this attack, so configured, is made for these defences."""
        return self.adaptive(config, defenses) if callable(self.adaptive) else self.adaptive

    def fits(self, threat: ThreatModel | None) -> bool:
        """Whether this defence is for targets and attacks of a threat."""
        if self.threat is None or threat is None:
            return False
        return self.threat.kind == threat.kind and threat.target in (self.threat.target, *self.also)
