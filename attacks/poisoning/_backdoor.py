"""What every backdoor shares: the trigger, the pair of classes, the budget, and their resolution."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import numpy as np

from redteam.core.config import Checked, knob
from redteam.core.errors import ConfigError, UnknownNameError
from redteam.core.types import Preset, Spec, ThreatModel
from redteam.data.nouns import ImageSet
from redteam.threats.poisoning import triggers
from redteam.threats.poisoning.artifact import Poison
from redteam.threats.poisoning.nouns import Trainable

ALL_SOURCES = -1

LABEL_THREAT = ThreatModel(
    kind="poisoning",
    target="trainable",
    access=("training labels",),
    budget="number of training rows whose label may change",
    knowledge=("training images and true labels", "victim's architecture (may be another)"),
    goal="images of the source class that wear the trigger are given the target class; others as before",
)


TRIGGERS = "1xp, 2xp, 3xp: pixels; 1xs, 2xs: sinusoidal stripes; 1xl, 4xl: Turner's corner patches"


@dataclass(frozen=True, slots=True, kw_only=True)
class Triggered(Checked):
    """What images wear to be misread."""

    trigger: triggers.TriggerName = knob("1xs", TRIGGERS)
    trigger_strength: float | None = knob(
        None, "amplitude of the stripes, in grey levels of 255; none: the data set's", above=0, high=255
    )
    trigger_cycles: float = knob(8.0, "periods of the stripes across the image", above=0)

    def spec(self) -> dict[str, Any]:
        """The trigger of a resolved config, as plain numbers."""
        return triggers.make(self.trigger, strength=self.trigger_strength, cycles=self.trigger_cycles)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backdoor(Triggered):
    """The goal of a backdoor: which images, wearing what, are to be taken for what, at which price."""

    RESOLVE: ClassVar = "attacks.poisoning._backdoor.resolve"

    source: int | str = knob("auto", "class to be misread: name or number; auto: the data set's; all: any")
    target_class: int | str = knob("auto", "class to be read instead: name or number; auto: the data set's")
    budget: int | float = knob(0.02, "rows changed: a count, or below 1 a fraction of the training rows")
    known_fraction: float = knob(
        1.0, "share of the training rows, from the first on, that is known", above=0, high=1
    )


C = TypeVar("C", bound=Backdoor)


def class_index(value: int | str, classes: tuple[str, ...], what: str) -> int:
    """A class by number or name.

    Raises:
        UnknownNameError, ConfigError: no such class.
    """
    if isinstance(value, int):
        if not 0 <= value < len(classes):
            raise ConfigError(f"{what}: expected a class from 0 to {len(classes) - 1}, got {value}")
        return value
    lowered = {name.lower(): index for index, name in enumerate(classes)}
    if value.lower() not in lowered:
        raise UnknownNameError(f"{what} class", value, classes)
    return lowered[value.lower()]


def budget_count(budget: int | float, n: int) -> int:
    """The budget as a number of rows of `n`.

    Raises:
        ConfigError: zero, negative, no row at all, or above n.
    """
    if budget <= 0:
        raise ConfigError(
            f"budget: expected more than 0 rows, got {budget}; the no-attack control changes none"
        )
    count = round(budget * n) if budget < 1 else budget
    if count != int(count) or not 1 <= count <= n:
        raise ConfigError(f"budget: expected 1 to {n} rows (or a fraction below 1 of them), got {budget}")
    return int(count)


def aimed(config: Any, target: Any, source: int) -> Any:
    """The config with its classes as numbers and the strength of its stripes.

    Raises:
        UnknownNameError, ConfigError: no such class, or source and target are one.
    """
    classes, facts = target.train.classes, target.facts
    wanted = facts.target_class if config.target_class == "auto" else config.target_class
    goal = class_index(wanted, classes, "target")
    if source == goal:
        raise ConfigError(
            f"source and target are both class {source} ('{classes[source]}'); choose two different classes"
        )
    strength = facts.stripe_strength if config.trigger_strength is None else config.trigger_strength
    return replace(config, source=source, target_class=goal, trigger_strength=strength)


def resolve(config: C, target: Trainable) -> C:
    """Fill in what depends on the data: class numbers, and the budget as a count.

    Raises:
        ConfigError: the budget does not fit the data, or source and target are one class.
    """
    if config.source in ("all", ALL_SOURCES):
        source = ALL_SOURCES
    else:
        wanted = target.facts.source_class if config.source == "auto" else config.source
        source = class_index(wanted, target.train.classes, "source")
    known: C = aimed(config, target, source)
    return replace(known, budget=budget_count(config.budget, len(target.train)))


def known_rows(config: Backdoor, n: int) -> int:
    """How many of the first training rows the attacker holds."""
    return max(1, round(config.known_fraction * n))


def source_rows(train: ImageSet, config: Backdoor) -> np.ndarray:
    """Known rows of the source class, in order; with all sources, of every class but the target."""
    labels = train.labels[: known_rows(config, len(train))]
    if config.source == ALL_SOURCES:
        return np.flatnonzero(labels != config.target_class)
    return np.flatnonzero(labels == config.source)


def poison(config: Backdoor, targets: np.ndarray, **parts: Any) -> Poison:
    """The artifact of a resolved config."""
    return Poison(
        targets=targets,
        trigger=config.spec(),
        source_class=int(config.source),
        target_class=int(config.target_class),
        budget=int(config.budget),
        **parts,
    )


def relabel(train: ImageSet, rows: np.ndarray, label: int | np.ndarray) -> np.ndarray:
    """A copy of the labels with `rows` set to `label`."""
    labels = train.labels.copy()
    labels[rows] = label
    return labels


def backdoor_spec(
    name: str,
    run: Callable[..., Poison],
    source: str,
    *,
    config: type[Backdoor] = Backdoor,
    presets: Mapping[str, Preset] | None = None,
    resolver: Callable[..., Any] = resolve,
    threat: ThreatModel = LABEL_THREAT,
    version: str = "1",
    **more: Any,
) -> Spec:
    """The `SPEC` of a backdoor or a control. presets; none given: the config itself under the three usual names.

    more: further fields.
    """
    usual = {title: Preset(config=config()) for title in ("default", "paper", "smoke")}
    return Spec(
        name=name, kind="attack", version=version, config=config, run=run, resolve=resolver,
        presets=presets or usual, source=source, threat=threat, **more,
    )  # fmt: skip
