"""Filters of training data: look at the rows, leave some out, train on the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from defenses.poisoning._aggregation import MakeRule, behind
from redteam.core.config import to_json
from redteam.core.context import Context
from redteam.core.errors import RedteamError, ThreatMismatchError
from redteam.core.types import Spec, TargetKind, ThreatModel
from redteam.data.nouns import DatasetFacts, ImageSet
from redteam.learn.nouns import Featured, TrainingSet
from redteam.threats.poisoning.federation.nouns import Federation
from redteam.threats.poisoning.filtering import FilteredClassifier, Verdicts
from redteam.threats.poisoning.nouns import Trainable

FILTER_THREAT = ThreatModel(
    kind="poisoning",
    target="trainable",
    access=("training data as given, poison included",),
    budget="no clean data",
    knowledge=("what it is told is recorded as oracle knowledge",),
    goal="a classifier without a backdoor, as accurate as before",
)


class Inspect(Protocol):
    """What tells one filter from another."""

    def __call__(self, target: Trainable, data: TrainingSet, seed: int, ctx: Context) -> Verdicts:
        """Verdicts on the rows of `data`. Their `trained` counts what the filter itself trained, not the rest."""
        ...


@dataclass(frozen=True)
class Behind:
    """What every trainable behind a filter shares with the one it wraps. settings: the filter's own."""

    inner: Any
    name: str
    settings: Any

    kind: ClassVar[TargetKind] = "trainable"

    @property
    def train(self) -> ImageSet:
        """The clean training data."""
        train: ImageSet = self.inner.train
        return train

    @property
    def facts(self) -> DatasetFacts:
        """What is customary for the data set."""
        facts: DatasetFacts = self.inner.facts
        return facts

    @property
    def config(self) -> Any:
        """Architecture and recipe of the target behind the filter."""
        return self.inner.config

    def fingerprint(self) -> dict[str, Any]:
        """The filter and the target behind it."""
        settings = dict(self.settings) if isinstance(self.settings, Mapping) else to_json(self.settings)
        return {"filter": self.name, "settings": settings, "inner": self.inner.fingerprint()}


@dataclass(frozen=True)
class Filtering(Behind):
    """A trainable that fits on what a filter leaves of its data. Each seed has its own verdicts."""

    inspect: Inspect

    def fit(self, data: TrainingSet, seeds: Sequence[int], ctx: Context) -> list[FilteredClassifier]:
        """One classifier per seed, each on what the filter left for it."""
        out = []
        for seed in seeds:
            verdicts = self.inspect(self.inner, data, seed, ctx.at("filter", self.name, seed))
            kept = np.flatnonzero(~verdicts.removed)
            rest = subset(data, kept, self.inner.config.batch_size, self.name)
            (model,) = self.inner.fit(rest, [seed], ctx)
            out.append(joined(model, verdicts, kept, trained_images(model)))
        return out


def joined(model: Any, verdicts: Verdicts, kept: np.ndarray, trained: int) -> FilteredClassifier:
    """The classifier with the verdicts of this filter and, on the rows it kept, of those further in."""
    removed, scores, notes = verdicts.removed.copy(), verdicts.scores.copy(), dict(verdicts.notes)
    if isinstance(model, FilteredClassifier):
        within = model.verdicts
        removed[kept] |= within.removed
        scores[kept] = np.where(np.isnan(within.scores), scores[kept], within.scores)
        notes["inner"] = dict(within.notes)
        model = model.model
    return FilteredClassifier(model, Verdicts(removed, scores, verdicts.trained + trained, notes))


def trained_images(model: Any) -> int:
    """Images put through training steps for a classifier, filters included; 0 where it does not say."""
    if isinstance(model, FilteredClassifier):
        return model.verdicts.trained
    return int(getattr(model, "trained", 0))


def subset(data: TrainingSet, kept: np.ndarray, least: int, name: str) -> TrainingSet:
    """The kept rows, in order.

    Raises:
        RedteamError: fewer than `least` rows are left.
    """
    if len(kept) < least:
        raise RedteamError(
            f"{name}: of {len(data.targets)} training rows {len(kept)} are left, and one batch needs {least}; "
            "let it assume fewer poisons (poisons=N), or lower batch_size"
        )
    if len(kept) == len(data.targets):
        return data
    return TrainingSet(data.images[kept], data.targets[kept])


def given_labels(data: TrainingSet) -> np.ndarray:
    """(n,) int64 labels as given; of soft labels the largest class."""
    return data.targets if data.targets.ndim == 1 else data.targets.argmax(1).astype(np.int64)


def backbone(target: Trainable, data: TrainingSet, seed: int, ctx: Context) -> tuple[Featured, int]:
    """The classifier trained without this filter from the same seed, and the images that training took.

    Raises:
        ThreatMismatchError: classifiers of this target do not show them.
    """
    (model,) = target.fit(data, [seed], ctx)
    plain = model.model if isinstance(model, FilteredClassifier) else model
    if not isinstance(plain, Featured):
        raise ThreatMismatchError(
            f"the filter needs representations: expected classifiers with features(images, layer), "
            f"got {type(plain).__name__}"
        )
    return plain, trained_images(model)


def filter_spec(
    name: str,
    config: type,
    inspect: Callable[[Any], Inspect],
    source: str,
    *,
    rule: MakeRule | None = None,
    version: str = "1",
    baselines: tuple[str, ...] = ("random-removal",),
    **more: Any,
) -> Spec:
    """The `SPEC` of a filter. inspect: made of the config. rule: what filters clients, where federations fit too.

    more: further fields.
    """

    def run(target: Any, config: Any, ctx: Context) -> Any:
        """The target behind the filter."""
        if rule is not None and isinstance(target, Federation):
            return behind(target, name, version, config, rule)
        return Filtering(target, name, to_json(config), inspect(config))

    return Spec(
        name=name, kind="defense", version=version, config=config, run=run, source=source, threat=FILTER_THREAT,
        baselines=baselines, also=("federation",) if rule else (), **more,
    )  # fmt: skip
