"""The image-classifier target: a training pipeline that turns labelled images into classifiers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from redteam.core.config import build, knob, to_json
from redteam.core.context import Context
from redteam.core.device import Device
from redteam.core.errors import UnknownNameError
from redteam.core.seeding import SeedPath
from redteam.core.types import Spec, TargetKind
from redteam.data.nouns import DatasetFacts, ImageDataset, ImageSet
from redteam.learn import models
from redteam.learn.features import features
from redteam.learn.nouns import Layer, TrainingSet
from redteam.learn.train import Converged, Recipe, Resident, Stop, fit, predict, steps_per_epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifierConfig(Recipe):
    """The victim: its architecture, its recipe, and how many are trained for one cell."""

    model: str = knob("preact-resnet32", "architecture; see `redteam list --models`")
    victims: int = knob(1, "victims trained on the same data from different seeds", low=1)
    together: bool = knob(False, "train a cell's victims at once under vmap")

    def __post_init__(self) -> None:
        Recipe.__post_init__(self)
        if self.model not in models.NAMES:
            raise UnknownNameError("model", self.model, models.NAMES)


# In a stage beside the weights: the training steps that were done, where that was not the recipe's number.
_STEPS = "steps"


@dataclass(frozen=True)
class FittedClassifier:
    """A trained network with its data set's normalisation. trained: images put through its training steps."""

    model: nn.Module
    facts: DatasetFacts
    device: Device
    trained: int = 0

    def logits(self, images: np.ndarray) -> np.ndarray:
        """images: (N, H, W, C) uint8. Returns (N, K) float32."""
        return predict(self.model, images, self.facts, self.device.torch())

    def features(self, images: np.ndarray, layer: Layer = "penultimate") -> np.ndarray:
        """images: (N, H, W, C) uint8. Returns (N, D) float32 representations; see `redteam.learn.features`."""
        return features(self.model, images, self.facts, self.device.torch(), layer)

    def state(self) -> dict[str, np.ndarray]:
        """Parameters and buffers by name."""
        return {k: v.detach().cpu().numpy() for k, v in self.model.state_dict().items()}


@dataclass(frozen=True)
class ImageTrainable:
    """Clean training images, an architecture and a recipe."""

    train: ImageSet
    facts: DatasetFacts
    config: ClassifierConfig
    device: Device
    kind: TargetKind = "trainable"

    def make_model(self, seeds: SeedPath) -> nn.Module:
        """A fresh network of the target's architecture."""
        height, width, channels = self.train.images.shape[1:]
        shape = (int(height), int(width), int(channels))
        return models.build(self.config.model, classes=len(self.train.classes), shape=shape, seeds=seeds)

    def resident(self, data: TrainingSet) -> Resident:
        """Training data on the device."""
        return Resident.load(data.images, data.targets, self.facts, self.device.torch())

    def with_config(self, **changes: Any) -> ImageTrainable:
        """The same target with some of its settings changed."""
        return replace(self, config=replace(self.config, **changes))

    def fit(
        self, data: TrainingSet, seeds: Sequence[int], ctx: Context, stop: Stop | None = None
    ) -> list[FittedClassifier]:
        """One classifier per seed, all fitted on the same data; each is a stage of its own.

        stop: end a training early, judged on its own training data; seeds are then trained one by one.
        """
        found: dict[int, FittedClassifier] = {}
        together = self.config.together and stop is None
        steps = steps_per_epoch(len(data.targets), self.config)
        for group in [tuple(seeds)] if together else [(seed,) for seed in seeds]:
            key = {"data": data.digest, **self.fingerprint(), "seeds": list(group)}
            if stop is not None:
                key["stop"] = to_json(stop)

            def arrays(group: tuple[int, ...] = group) -> dict[str, np.ndarray]:
                return self._train(data, group, ctx, stop)

            stored = ctx.stage("victim", key, arrays)
            done = int(stored.get(_STEPS, self.config.epochs * steps))
            for index, seed in enumerate(group):
                model = self._restore(stored, f"{index}.")
                found[seed] = replace(model, trained=done * self.config.batch_size)
        return [found[seed] for seed in seeds]

    def _train(
        self, data: TrainingSet, seeds: Sequence[int], ctx: Context, stop: Stop | None
    ) -> dict[str, np.ndarray]:
        paths = [SeedPath(seed, ("victim",)) for seed in seeds]
        resident = self.resident(data)
        hooks = [] if stop is None else [Converged(stop, resident)]
        trained = fit(
            self.make_model, resident, self.config, paths, ctx,
            together=self.config.together and stop is None, name="victim", hooks=hooks,
        )  # fmt: skip
        states = [FittedClassifier(m, self.facts, self.device).state() for m in trained]
        out = {f"{i}.{name}": a for i, state in enumerate(states) for name, a in state.items()}
        if hooks:
            out[_STEPS] = np.array(hooks[0].steps)
        return out

    def _restore(self, stored: dict[str, np.ndarray], prefix: str) -> FittedClassifier:
        model = self.make_model(SeedPath(0))
        state = {
            k.removeprefix(prefix): torch.from_numpy(a) for k, a in stored.items() if k.startswith(prefix)
        }
        model.load_state_dict(state)
        return FittedClassifier(model.to(self.device.torch()).eval(), self.facts, self.device)

    def fingerprint(self) -> dict[str, Any]:
        """Recipe, normalisation, classes, device kind and version: with data and seed they decide."""
        settings = to_json(self.config)
        settings.pop("victims")
        return {
            "target": SPEC.name, "version": SPEC.version, "config": settings, "device": self.device.kind,
            "mean": list(self.facts.mean), "std": list(self.facts.std), "classes": len(self.train.classes),
        }  # fmt: skip


def make(dataset: ImageDataset, config: ClassifierConfig, ctx: Context) -> ImageTrainable:
    """The target on a data set."""
    return ImageTrainable(dataset.train, dataset.facts, config, ctx.device)


def configure(dataset: ImageDataset, *layers: Mapping[str, Any]) -> ClassifierConfig:
    """The data set's customary recipe with `layers` of settings laid over it, the last one on top."""
    facts = dataset.facts
    config = build(ClassifierConfig, {"pad": facts.pad, "flip": facts.flip, **facts.recipe})
    for layer in layers:
        config = build(ClassifierConfig, layer, base=config, where="victim")
    return replace(config)


SPEC = Spec(
    name="image-classifier",
    kind="target",
    version="1",
    config=ClassifierConfig,
    run=make,
    source="jha2023flip",
)
