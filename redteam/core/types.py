"""The nouns of the suite: data sets, targets, threats, plug-in cards, and the run context.

Protocols sit at the edges; nothing here imports torch, so listing plug-ins stays instant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from redteam.core.errors import DataError
from redteam.core.hashing import digest_arrays, digest_json

if TYPE_CHECKING:
    import numpy as np

    from redteam.core.context import Context

Role = Literal["attack", "control", "baseline", "audit"]
Knowledge = Literal["adaptive", "oblivious"]
TargetKind = Literal[
    "trainable", "federation", "classifier", "language-model", "text-classifier", "agent", "image-generator"
]


# ---------------------------------------------------------------- data


@dataclass(frozen=True)
class ImageSet:
    """Labelled images in memory.

    images: (N, H, W, C) uint8. labels: (N,) int64 in [0, len(classes)).
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != "uint8" or self.images.ndim != 4:
            raise DataError(
                f"expected images (N, H, W, C) uint8, got {self.images.shape} {self.images.dtype}"
            )
        if self.labels.dtype != "int64" or self.labels.shape != (len(self.images),):
            raise DataError(
                f"expected labels ({len(self.images)},) int64, got {self.labels.shape} {self.labels.dtype}"
            )
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise DataError(
                f"expected labels in [0, {len(self.classes)}), got {self.labels.min()} to {self.labels.max()}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def digest(self) -> str:
        """sha256 of the pixels, the labels, their order and the class names."""
        content = digest_arrays({"images": self.images, "labels": self.labels})
        return digest_json([content, list(self.classes)])


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFacts:
    """What is customary for one data set: it lives here, not in a config file per data set.

    mean, std: per channel, of pixels scaled to [0, 1]. pad: pixels of random-crop padding.
    recipe: fields of the image-classifier target that differ from its own defaults.
    stripe_strength: amplitude, in grey levels, of the customary sinusoidal trigger.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int
    flip: bool
    source_class: int
    target_class: int
    stripe_strength: float = 6.0
    recipe: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageDataset:
    """A named pair of training and test images, with its facts, licence and provenance."""

    name: str
    train: ImageSet
    test: ImageSet
    facts: DatasetFacts
    source: str
    licence: str

    def __post_init__(self) -> None:
        if self.train.images.shape[1:] != self.test.images.shape[1:]:
            raise DataError(
                f"'{self.name}': training images are {self.train.images.shape[1:]} "
                f"and test images {self.test.images.shape[1:]}; they must have one shape"
            )
        if self.train.classes != self.test.classes:
            raise DataError(f"'{self.name}': training and test sets name different classes")

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in label order."""
        return self.train.classes

    @cached_property
    def digest(self) -> str:
        """sha256 over both splits; it goes into every record."""
        return digest_json([self.train.digest, self.test.digest])


# ---------------------------------------------------------------- targets


@dataclass(frozen=True)
class TrainingSet:
    """What a victim is fitted on. images: (N, H, W, C) uint8.

    targets: (N,) int64 class labels, or (N, K) float32 class probabilities (soft labels).
    """

    images: np.ndarray
    targets: np.ndarray

    @cached_property
    def digest(self) -> str:
        """sha256 of images and targets."""
        return digest_arrays({"images": self.images, "targets": self.targets})


@runtime_checkable
class Classifier(Protocol):
    """A fitted image classifier."""

    def logits(self, images: np.ndarray) -> np.ndarray:
        """images: (N, H, W, C) uint8. Returns (N, K) float32."""
        ...


Layer = Literal["penultimate", "spatial"]


@runtime_checkable
class Featured(Protocol):
    """A classifier that shows its representations, as filters need."""

    def features(self, images: np.ndarray, layer: Layer = "penultimate") -> np.ndarray:
        """images: (N, H, W, C) uint8. Returns (N, D) float32."""
        ...


@runtime_checkable
class Trainable(Protocol):
    """A pipeline that turns training data into classifiers: the target of poisoning.

    `train` is the clean training data, which the attacker sees. The test data is not here:
    only the scorer holds it.
    """

    @property
    def kind(self) -> TargetKind:
        """`trainable`."""
        ...

    @property
    def train(self) -> ImageSet:
        """The clean training data."""
        ...

    @property
    def facts(self) -> DatasetFacts:
        """What is customary for the data set."""
        ...

    @property
    def config(self) -> Any:
        """Architecture and recipe (a `redteam.trainable.ClassifierConfig`): the attacker may know them."""
        ...

    def fit(self, data: TrainingSet, seeds: Sequence[int], ctx: Context) -> Sequence[Classifier]:
        """One classifier per seed, all fitted on the same data."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Everything but data and seed that decides the outcome of `fit`, as plain JSON values."""
        ...


# ---------------------------------------------------------------- threats and plug-ins


@dataclass(frozen=True, slots=True, kw_only=True)
class Threat:
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
    variants: settings of which each is run where none of their keys is given (of a defence, by `evaluate`).
    adaptive: an attack that knows the defence by design, and meets the defended target in every cell; or a function
    `(its config, names of the defences)` that says whether it is made for what stands there.
    baselines: of a defence, those that `evaluate` runs beside it. oracle: what a defence is told that a defender
    would not know, or a function of its config that says so. also: further kinds of targets that a defence fits.
    told: fills in what a defence is told of an attack before the cell is hashed:
    `(config, the attack's resolved config as JSON, target) -> config`; `oracle` then says what that was.
    """

    name: str
    kind: Literal["target", "attack", "defense", "audit"]
    version: str
    config: type
    run: Callable[..., Any]
    presets: Mapping[str, Preset]
    source: str
    threat: Threat | None = None
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

    def knows(self, config: Any, defenses: Sequence[str]) -> bool:
        """Whether this attack, so configured, is made for these defences."""
        return self.adaptive(config, defenses) if callable(self.adaptive) else self.adaptive

    def fits(self, threat: Threat | None) -> bool:
        """Whether this defence is for targets and attacks of a threat."""
        if self.threat is None or threat is None:
            return False
        return self.threat.kind == threat.kind and threat.target in (self.threat.target, *self.also)
