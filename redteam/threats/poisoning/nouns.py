"""What poisoning attacks: a pipeline that turns training data into classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from redteam.core.types import TargetKind

if TYPE_CHECKING:
    from redteam.core.context import Context
    from redteam.data.nouns import DatasetFacts, ImageSet
    from redteam.learn.nouns import Classifier, TrainingSet


class Trained(Protocol):
    """What attacks on training see of a pipeline, whoever holds its data.

    `train` is the clean training data, which the attacker sees. The test data is not here:
    only the scorer holds it.
    """

    @property
    def kind(self) -> TargetKind:
        """`trainable` or `federation`."""

    @property
    def train(self) -> ImageSet:
        """The clean training data."""

    @property
    def facts(self) -> DatasetFacts:
        """What is customary for the data set."""

    @property
    def config(self) -> Any:
        """Architecture and recipe: the attacker may know them."""

    def fingerprint(self) -> dict[str, Any]:
        """Everything but training data, malicious clients and seed that decides the outcome, as plain JSON values."""


@runtime_checkable
class Trainable(Trained, Protocol):
    """A pipeline that turns training data into classifiers: the target of poisoning.

    config: a `target.ClassifierConfig`.
    """

    def fit(self, data: TrainingSet, seeds: Sequence[int], ctx: Context) -> Sequence[Classifier]:
        """One classifier per seed, all fitted on the same data."""
