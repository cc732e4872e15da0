"""The classifier target: a network fitted on a source domain, judged on images of the target domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from redteam.core.config import build, to_json
from redteam.core.context import Context
from redteam.core.errors import ConfigError, UnknownNameError
from redteam.core.seeding import SeedPath
from redteam.core.types import Preset, Spec, TargetKind
from redteam.data.nouns import ImageSet
from redteam.learn import models
from redteam.threats.evasion.adapt import external
from redteam.threats.evasion.adapt.algorithm import Algorithm, Dann, Erm
from redteam.threats.evasion.adapt.config import PAPER, SELECTORS, DomainConfig
from redteam.threats.evasion.adapt.loop import VERSION, Adapted, Loop
from redteam.threats.evasion.adapt.networks import Classifier, Networks
from redteam.threats.evasion.domain import DomainDataset, DomainSplit, split
from redteam.threats.evasion.nouns import Fitted

# Fields of the config that do not change what is trained.
_AFTER = ("examples", "select")
# Those that do not change a training without perturbations.
PERTURBING = ("norm", "eps", "inner_steps", "inner_step", "eps_ramp", "val_steps")
_HISTORY = ("victim", "step", "criterion", "value", "n")


def resized(images: ImageSet, size: int) -> ImageSet:
    """The images at size x size pixels: bilinear, with antialiasing where that is smaller. 0: as they are."""
    height, width = images.images.shape[1:3]
    if not size or (height, width) == (size, size) or not len(images):
        return images
    x = torch.from_numpy(np.ascontiguousarray(images.images.transpose(0, 3, 1, 2))).float()
    parts = [F.interpolate(p, (size, size), mode="bilinear", antialias=True) for p in x.split(1000)]  # type: ignore[no-untyped-call]
    small = torch.cat(parts).round().clamp(0, 255).byte().numpy().transpose(0, 2, 3, 1)
    return ImageSet(np.ascontiguousarray(small), images.labels, images.classes)


@dataclass(frozen=True)
class _Division:
    """What decides a split; the data set itself is known by its digest."""

    digest: str
    root: int
    rows: int
    size: int
    dataset: DomainDataset = field(compare=False)


@lru_cache(maxsize=4)
def _divided(of: _Division) -> DomainSplit:
    found = split(of.dataset, SeedPath(of.root, ("domains",)), of.rows)
    unlabelled = ImageSet(found.target, found.target_labels, of.dataset.classes)
    return DomainSplit(
        source=resized(found.source, of.size), source_val=resized(found.source_val, of.size),
        target=resized(unlabelled, of.size).images, target_labels=found.target_labels,
        target_val=resized(found.target_val, of.size), test=resized(found.test, of.size),
    )  # fmt: skip


@dataclass(frozen=True)
class DomainTarget:
    """A classifier and the task it is trained and judged on.

    algorithm: how it is trained; None: on the source alone, or, for a model of the user's own with weights, not at
    all. Everything random depends on the cell's root seed.
    """

    dataset: DomainDataset
    config: DomainConfig
    algorithm: Algorithm | None = None
    kind: TargetKind = "classifier"

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in label order."""
        return self.dataset.classes

    def trained_by(self, algorithm: Algorithm) -> DomainTarget:
        """The same task with another training.

        Raises:
            ConfigError: a training was chosen already, or the task lacks the target domain that this one needs.
        """
        if self.algorithm is not None:
            raise ConfigError(
                f"expected one training algorithm, got {self.algorithm.name} and {algorithm.name}; they do not compose"
            )
        if algorithm.adapts and not self.dataset.adapts:
            raise ConfigError(
                f"{algorithm.name} adapts to a target domain, and '{self.dataset.name}' has none; "
                "give a pair such as --dataset 'syn*-to-optdigits'"
            )
        return replace(self, algorithm=algorithm)

    def split(self, ctx: Context) -> DomainSplit:
        """How the data are divided for this seed, at the network's size."""
        return _divided(
            _Division(self.dataset.digest, ctx.seeds.root, self.config.rows, self.config.size, self.dataset)
        )

    def examples(self, ctx: Context) -> ImageSet:
        """The test images that attacks perturb: the first `examples` of the split's."""
        test, n = self.split(ctx).test, self.config.examples
        return ImageSet(test.images[:n], test.labels[:n], test.classes) if n else test

    def fit(self, ctx: Context) -> list[Fitted]:
        """One network for each victim, in the state that `select` takes."""
        return [states[self.config.select] for states in self.selected(ctx)]

    def selected(self, ctx: Context) -> list[dict[str, Fitted]]:
        """For each victim, the network that each selector takes."""
        if not self._trains:
            network = self._network(SeedPath(0), self.split(ctx)).to(ctx.device.torch()).eval()
            return [{self.config.select: Fitted(network)}]
        stored, parts = self._trained(ctx), self.split(ctx)
        out: list[dict[str, Fitted]] = []
        for victim in range(self.config.victims):
            fitted: dict[int, Fitted] = {}
            found: dict[str, Fitted] = {}
            for position, selector in enumerate(SELECTORS):
                step = int(stored["chosen"][victim, position])
                if step >= 0:
                    if step not in fitted:
                        fitted[step] = self._restore(stored, victim, step, parts, ctx)
                    found[selector] = fitted[step]
            out.append(found)
        return out

    def history(self, ctx: Context) -> dict[str, Any]:
        """The table of validations: victim, step, criterion, value, n; empty where nothing was trained."""
        if not self._trains:
            return {name: [] for name in _HISTORY}
        stored = self._trained(ctx)
        return {name: stored[f"history.{name}"] for name in _HISTORY}

    def identity(self, ctx: Context) -> dict[str, Any]:
        """What decides the networks that selectors take, as plain JSON values."""
        return self._key(self.algorithm or Erm(), ctx)

    @property
    def _trains(self) -> bool:
        return self.algorithm is not None or not external.digest(self.config.model)

    # ------------------------------------------------------------ training

    def _network(self, seeds: SeedPath, parts: DomainSplit) -> nn.Module:
        """A fresh classifier with normalisation inside; body and head apart where it is to be trained."""
        config, images = self.config, parts.source.images
        shape = images.shape[1:]
        if external.is_external(config.model):
            with seeds.as_global():
                model = external.load_external(
                    config.model, classes=len(self.classes), shape=(shape[0], shape[1], shape[2]),
                    mean=config.mean, std=config.std,
                )  # fmt: skip
            return Classifier(*external.parts(model, (shape[2], *shape[:2]))) if self._trains else model
        model = models.build(
            config.model, classes=len(self.classes), shape=(shape[0], shape[1], shape[2]), seeds=seeds
        )
        body, head = external.parts(model, (shape[2], *shape[:2]))
        pixels = images[:2000].reshape(-1, shape[2]) / 255
        mean = config.mean or tuple(pixels.mean(0).tolist())
        std = config.std or tuple(np.maximum(pixels.std(0), 1e-3).tolist())
        return Classifier(nn.Sequential(external.Normalised(nn.Identity(), mean, std), body), head)

    def _seeds(self, ctx: Context) -> list[SeedPath]:
        root = SeedPath(ctx.seeds.root, ("classifier",))
        return [root.child("victim", i) for i in range(self.config.victims)]

    def _trained(self, ctx: Context) -> dict[str, np.ndarray]:
        algorithm, parts = self.algorithm or Erm(), self.split(ctx)
        # A stage of its own, and not inside the other: its seconds are counted once.
        predictor = self._predictor(parts, ctx) if self.dataset.adapts else None

        def train() -> dict[str, np.ndarray]:
            return _arrays(
                self._loop(algorithm, parts, ctx, predictor).run(algorithm.name), self.config.victims
            )

        return ctx.stage("adapted", self._key(algorithm, ctx), train)

    def _key(self, algorithm: Algorithm, ctx: Context, without: Sequence[str] = _AFTER) -> dict[str, Any]:
        settings = {k: v for k, v in to_json(self.config).items() if k not in without}
        return {
            "target": SPEC.name, "version": SPEC.version, "config": settings, "data": self.dataset.digest,
            "algorithm": [algorithm.name, algorithm.version, dict(algorithm.settings)], "loop": VERSION,
            "seed": ctx.seeds.root, "model": external.digest(self.config.model), "device": ctx.device.kind,
        }  # fmt: skip

    def _loop(
        self, algorithm: Algorithm, parts: DomainSplit, ctx: Context, predictor: Networks | None = None
    ) -> Loop:
        return Loop(
            lambda seeds: self._network(seeds, parts), parts, algorithm, self.config, self._seeds(ctx), ctx,
            predictor=predictor,
        )  # fmt: skip

    def _predictor(self, parts: DomainSplit, ctx: Context) -> Networks:
        """The Natural DANN that gives the first pseudo-labels, in its state of best source accuracy."""
        dann = Dann()
        key = self._key(dann, ctx, without=(*_AFTER, *PERTURBING))
        stored = ctx.stage(
            "predictor",
            key,
            lambda: _arrays(self._loop(dann, parts, ctx).run("predictor"), self.config.victims),
        )
        position = SELECTORS.index("source-clean")
        networks = [
            self._restore(stored, v, int(stored["chosen"][v, position]), parts, ctx).network
            for v in range(self.config.victims)
        ]
        return Networks({"model": networks}).snapshot()

    def _restore(
        self, stored: Mapping[str, np.ndarray], victim: int, step: int, parts: DomainSplit, ctx: Context
    ) -> Fitted:
        network = self._network(SeedPath(0), parts)
        prefix = f"{victim}/{step}/"
        state = {
            k.removeprefix(prefix): torch.from_numpy(a) for k, a in stored.items() if k.startswith(prefix)
        }
        network.load_state_dict(state)
        pseudo = stored["pseudo"][victim] if "pseudo" in stored else None
        return Fitted(network.to(ctx.device.torch()).eval(), step, pseudo)


def _arrays(done: Adapted, victims: int) -> dict[str, np.ndarray]:
    """What a stage keeps. chosen: (victims, selectors), the step each takes, -1 where a criterion is missing."""
    out: dict[str, np.ndarray] = {
        f"{victim}/{step}/{name}": p.cpu().numpy()
        for (victim, step), state in done.keeper.states.items()
        for name, p in state.items()
    }
    chosen = [[done.keeper.chosen.get((v, s), -1) for s in SELECTORS] for v in range(victims)]
    out["chosen"] = np.array(chosen, dtype=np.int64)
    for name, column in zip(_HISTORY, zip(*done.history, strict=True), strict=True):
        out[f"history.{name}"] = np.array(column)
    if done.pseudo is not None:
        out["pseudo"] = done.pseudo
    return out


def make(dataset: DomainDataset, config: DomainConfig, ctx: Context) -> DomainTarget:
    """The target on a task."""
    return DomainTarget(dataset, config)


def configure(dataset: DomainDataset, *layers: Mapping[str, Any]) -> DomainConfig:
    """The defaults with `layers` of settings laid over them, the last one on top.

    A task with one domain has no target validation images: there `source-pgd` is the default selector, and images
    keep their size.

    Raises:
        ConfigError, UnknownNameError: a setting that does not fit, or a selector that needs a target domain.
    """
    base = DomainConfig() if dataset.adapts else DomainConfig(select="source-pgd", size=0, eps="8/255")
    for layer in layers:
        base = build(DomainConfig, layer, base=base, where="classifier")
    if not dataset.adapts and base.select in ("pseudo", "oracle"):
        raise ConfigError(
            f"select: '{base.select}' needs a target domain, and '{dataset.name}' has none; "
            "expected source-clean, source-pgd or last"
        )
    if not external.is_external(base.model) and base.model not in models.NAMES:
        raise UnknownNameError("model", base.model, models.NAMES)
    if external.digest(base.model) and base.victims > 1:
        raise ConfigError(f"victims: expected 1 for a model of your own with weights, got {base.victims}")
    # One radius, one cell, however it was written.
    return replace(base, eps=base.radius)


SPEC = Spec(
    name="classifier",
    kind="target",
    version="1",
    config=DomainConfig,
    run=make,
    presets={
        "default": Preset(config=DomainConfig()),
        "paper": Preset(config=DomainConfig(**PAPER)),
    },
    source="wang2024dart",
)  # fmt: skip
