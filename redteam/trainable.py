"""The image-classifier target: a training pipeline that turns labelled images into classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from redteam import models
from redteam.config import build, knob, to_json
from redteam.context import Context
from redteam.device import Device
from redteam.errors import UnknownNameError
from redteam.seeding import SeedPath
from redteam.train import Recipe, Resident, fit, predict
from redteam.types import DatasetFacts, ImageDataset, ImageSet, Preset, Spec, TargetKind, TrainingSet


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


@dataclass(frozen=True)
class FittedClassifier:
    """A trained network with its data set's normalisation."""

    model: nn.Module
    facts: DatasetFacts
    device: Device

    def logits(self, images: np.ndarray) -> np.ndarray:
        """images: (N, H, W, C) uint8. Returns (N, K) float32."""
        return predict(self.model, images, self.facts, self.device.torch())

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

    def fit(self, data: TrainingSet, seeds: Sequence[int], ctx: Context) -> list[FittedClassifier]:
        """One classifier per seed, all fitted on the same data; each is a stage of its own."""
        found: dict[int, FittedClassifier] = {}

        def train(wanted: Sequence[int]) -> list[nn.Module]:
            paths = [SeedPath(seed, ("victim",)) for seed in wanted]
            return fit(
                self.make_model, self.resident(data), self.config, paths, ctx,
                together=self.config.together, name="victim",
            )  # fmt: skip

        groups = [tuple(seeds)] if self.config.together else [(seed,) for seed in seeds]
        for group in groups:
            key = {"data": data.digest, **self.fingerprint(), "seeds": list(group)}

            def arrays(group: tuple[int, ...] = group) -> dict[str, np.ndarray]:
                trained = [FittedClassifier(m, self.facts, self.device).state() for m in train(group)]
                return {f"{i}.{name}": a for i, state in enumerate(trained) for name, a in state.items()}

            stored = ctx.stage("victim", key, arrays)
            for index, seed in enumerate(group):
                found[seed] = self._restore(stored, f"{index}.")
        return [found[seed] for seed in seeds]

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


def configure(dataset: ImageDataset, *layers: dict[str, Any]) -> ClassifierConfig:
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
    presets={"default": Preset(config=ClassifierConfig())},
    source="jha2023flip",
)
