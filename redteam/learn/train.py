"""The one training loop.

uint8 data stays on the device; crops and flips happen there; several replicas of a small model may
be trained at once. Attacks and defences pass a hook; nobody else writes `for epoch`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, stack_module_state

from redteam.core.config import check_ranges, knob
from redteam.core.context import Context
from redteam.core.device import Precision
from redteam.core.errors import ConfigError
from redteam.core.seeding import SeedPath
from redteam.data.nouns import DatasetFacts
from redteam.learn.augment import Augmentation, Draw

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a classifier is trained. The defaults are the 200-epoch recipe of [jha2023flip]."""

    epochs: int = knob(200, "passes over the training data", low=1)
    batch_size: int = knob(256, "images a step; the last short batch of an epoch is dropped", low=2)
    lr: float = knob(0.1, "peak learning rate of SGD", above=0)
    momentum: float = knob(0.9, "momentum of SGD", low=0, high=1)
    nesterov: bool = knob(True, "Nesterov momentum")
    weight_decay: float = knob(2e-4, "L2 penalty on all parameters", low=0)
    schedule: Literal["multistep", "onecycle", "constant"] = knob(
        "multistep", "multistep: times gamma at each milestone; onecycle: up for a quarter, down to 0"
    )
    milestones: tuple[int, ...] = knob((75, 125), "epochs at which multistep lowers the rate", low=1)
    gamma: float = knob(0.1, "factor of multistep", above=0, high=1)
    pad: int = knob(4, "pixels of padding for the random crop; 0 turns it off", low=0)
    flip: bool = knob(True, "mirror half of the images at random")
    channels_last: bool = knob(True, "keep images in channels-last order (faster, same results)")
    precision: Precision = knob("float32", "bfloat16: autocast the forward pass")

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.nesterov and self.momentum == 0:
            raise ConfigError("nesterov: expected a momentum above 0, got 0; turn nesterov off")

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of step `step` (from 0)."""
        if self.schedule == "multistep":
            passed = sum(step >= m * steps_per_epoch for m in self.milestones)
            return self.lr * self.gamma**passed
        if self.schedule == "onecycle":
            where = (step + 0.5) / (self.epochs * steps_per_epoch)
            return self.lr * (where / 0.25 if where < 0.25 else (1 - where) / 0.75)
        return self.lr


@dataclass(frozen=True)
class Resident:
    """Training or test data on the device. images: (N, H, W, C) uint8; targets: (N,) or (N, K)."""

    images: torch.Tensor
    targets: torch.Tensor
    facts: DatasetFacts

    @classmethod
    def load(
        cls, images: np.ndarray, targets: np.ndarray, facts: DatasetFacts, device: torch.device
    ) -> Resident:
        """Copy host arrays to the device."""
        return cls(torch.from_numpy(images).to(device), torch.from_numpy(targets).to(device), facts)

    def __len__(self) -> int:
        return len(self.images)


def normalise(images: torch.Tensor, facts: DatasetFacts, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """(N, H, W, C) uint8 to (N, C, H, W) in channels-last memory, with the data set's mean and std."""
    mean = torch.tensor(facts.mean, dtype=dtype, device=images.device) * 255
    std = torch.tensor(facts.std, dtype=dtype, device=images.device) * 255
    return ((images.to(dtype) - mean) / std).permute(0, 3, 1, 2)


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy with labels (N,) int64 or probabilities (N, K)."""
    return F.cross_entropy(logits.float() if logits.dtype == torch.bfloat16 else logits, targets)


class State(Protocol):
    """What a hook sees of a training in progress."""

    step: int
    steps_per_epoch: int
    stop: bool

    def snapshot(self, replica: int = 0) -> tuple[Tensors, Tensors]:
        """Copies of the parameters and of the momentum buffers (zeros before the first step)."""

    def predict(self, images: torch.Tensor, facts: DatasetFacts) -> torch.Tensor:
        """Logits (N, K) of images (N, H, W, C) uint8 under the first replica as it is, in evaluation mode."""


Hook = Callable[[State], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """When to end a training early: its accuracy on its own rows of one label no longer changes.

    change: largest change from one epoch to the next that counts as none. floor: accuracy needed first.
    rows: of the label, the first so many are asked.
    """

    label: int
    change: float = 5e-4
    floor: float = 0.98
    rows: int = 1000


class Converged:
    """A hook that ends a training by a `Stop`. Soft labels count by their largest class."""

    def __init__(self, stop: Stop, data: Resident) -> None:
        labels = data.targets if data.targets.ndim == 1 else data.targets.argmax(1)
        self.stop, self.facts, self.steps = stop, data.facts, 0
        self.images = data.images[(labels == stop.label).nonzero()[: stop.rows, 0]]
        self.before: float | None = None

    def __call__(self, state: State) -> None:
        """Called before each step; looks at the end of every epoch but the last."""
        self.steps = state.step + 1
        if state.step == 0 or state.step % state.steps_per_epoch or not len(self.images):
            return
        said = state.predict(self.images, self.facts).argmax(1)
        now = float((said == self.stop.label).float().mean())
        if self.before is not None and now >= self.stop.floor and abs(now - self.before) < self.stop.change:
            state.stop, self.steps = True, state.step
        self.before = now


@dataclass
class _Loop:
    """Replicas in a row: one optimiser each."""

    models: list[nn.Module]
    recipe: Recipe
    step: int = 0
    steps_per_epoch: int = 0
    stop: bool = False

    def __post_init__(self) -> None:
        self._optimizers = [_sgd(list(m.parameters()), self.recipe) for m in self.models]

    def update(self, images: list[torch.Tensor], targets: list[torch.Tensor], lr: float) -> None:
        for model, optimizer, x, y in zip(self.models, self._optimizers, images, targets, strict=True):
            optimizer.param_groups[0]["lr"] = lr
            with _autocast(self.recipe, x.device):
                loss = cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def snapshot(self, replica: int = 0) -> tuple[Tensors, Tensors]:
        model, state = self.models[replica], self._optimizers[replica].state
        return _copies(dict(model.named_parameters()), state)

    def predict(self, images: torch.Tensor, facts: DatasetFacts) -> torch.Tensor:
        model = self.models[0].eval()
        with torch.inference_mode():
            logits: torch.Tensor = model(normalise(images, facts))
        model.train()
        return logits

    def finish(self) -> list[nn.Module]:
        return self.models


class _Stacked:
    """Replicas at once: stacked parameters under `vmap`, one optimiser for all."""

    def __init__(self, models: list[nn.Module], recipe: Recipe) -> None:
        self.models, self.recipe = models, recipe
        self.step, self.steps_per_epoch, self.stop = 0, 0, False
        self.params, self.buffers = stack_module_state(models)  # type: ignore[arg-type]
        self._optimizer = _sgd(list(self.params.values()), recipe)

    def update(self, images: list[torch.Tensor], targets: list[torch.Tensor], lr: float) -> None:
        self._optimizer.param_groups[0]["lr"] = lr
        x, y = torch.stack(images), torch.stack(targets)

        def loss_of(params: Tensors, buffers: Tensors, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return cross_entropy(functional_call(self.models[0], (params, buffers), (x,)), y)

        with _autocast(self.recipe, x.device):
            losses = torch.vmap(loss_of, randomness="different")(self.params, self.buffers, x, y)
        self._optimizer.zero_grad()
        losses.sum().backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()

    def snapshot(self, replica: int = 0) -> tuple[Tensors, Tensors]:
        params, momenta = _copies(self.params, self._optimizer.state)
        return {k: v[replica] for k, v in params.items()}, {k: v[replica] for k, v in momenta.items()}

    def predict(self, images: torch.Tensor, facts: DatasetFacts) -> torch.Tensor:
        raise ConfigError(
            "together: a training that is watched is not trained together with others; turn it off"
        )

    def finish(self) -> list[nn.Module]:
        for index, model in enumerate(self.models):
            state = {**self.params, **self.buffers}
            model.load_state_dict({k: v[index].detach() for k, v in state.items()})
        return self.models


def _sgd(params: list[torch.Tensor], recipe: Recipe) -> torch.optim.SGD:
    return torch.optim.SGD(
        params, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )  # fmt: skip


def _autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16")


def _copies(params: Tensors, state: Any) -> tuple[Tensors, Tensors]:
    momenta = {
        k: state[p]["momentum_buffer"].detach().clone() if p in state else torch.zeros_like(p)
        for k, p in params.items()
    }
    return {k: p.detach().clone() for k, p in params.items()}, momenta


@dataclass(frozen=True)
class _Plan:
    """One replica's order and augmentation for an epoch."""

    order: torch.Tensor
    draw: Draw


def _plan(recipe: Recipe, n: int, seeds: SeedPath, epoch: int, device: torch.device) -> _Plan:
    generator = seeds.child("epoch", epoch).torch()
    order = torch.randperm(n, generator=generator)
    draw = Augmentation(recipe.pad, recipe.flip).draw(n, generator)
    return _Plan(order.to(device), draw.to(device))


def steps_per_epoch(n: int, recipe: Recipe) -> int:
    """Full batches in an epoch of `n` rows.

    Raises:
        ConfigError: the data does not fill one batch.
    """
    if n < recipe.batch_size:
        raise ConfigError(
            f"batch_size: expected at most the {n} training rows, got {recipe.batch_size}; lower it"
        )
    return n // recipe.batch_size


def fit(
    make: Callable[[SeedPath], nn.Module],
    data: Resident,
    recipe: Recipe,
    seeds: Sequence[SeedPath],
    ctx: Context,
    *,
    hooks: Sequence[Hook] = (),
    together: bool = False,
    name: str = "train",
) -> list[nn.Module]:
    """Train one model for each seed path, all on the same data. Deterministic for a seed on a device.

    A replica's initial weights, order and augmentation depend on its own seed path alone, so its
    result does not depend on which replicas run beside it. together: train them under one `vmap`.
    hooks: called before each step. Returns the models in evaluation mode.
    """
    device, n = data.images.device, len(data)
    memory = torch.channels_last if recipe.channels_last else torch.contiguous_format
    models = [make(s.child("init")).to(device=device, memory_format=memory).train() for s in seeds]  # type: ignore[call-overload]
    engine: _Loop | _Stacked = (_Stacked if together and len(models) > 1 else _Loop)(models, recipe)
    engine.steps_per_epoch = steps_per_epoch(n, recipe)
    total = recipe.epochs * engine.steps_per_epoch
    augmentation = Augmentation(recipe.pad, recipe.flip)
    for epoch in range(recipe.epochs):
        plans = [_plan(recipe, n, s.child("order"), epoch, device) for s in seeds]
        for index in range(engine.steps_per_epoch):
            for hook in hooks:
                hook(engine)
            if engine.stop:
                ctx.report(name, total, total)
                return [m.eval() for m in engine.finish()]
            rows = slice(index * recipe.batch_size, (index + 1) * recipe.batch_size)
            batches = [_batch(data, p, rows, augmentation, memory) for p in plans]
            lr = recipe.lr_at(engine.step, engine.steps_per_epoch)
            engine.update([x for x, _ in batches], [y for _, y in batches], lr)
            engine.step += 1
            ctx.report(name, engine.step, total)
    return [m.eval() for m in engine.finish()]


def _batch(
    data: Resident, plan: _Plan, rows: slice, augmentation: Augmentation, memory: torch.memory_format
) -> tuple[torch.Tensor, torch.Tensor]:
    chosen = plan.order[rows]
    images = augmentation.apply(data.images[chosen], plan.draw[rows])
    return normalise(images, data.facts).contiguous(memory_format=memory), data.targets[chosen]


@torch.inference_mode()
def predict(
    model: nn.Module, images: np.ndarray, facts: DatasetFacts, device: torch.device, batch: int = 2048
) -> np.ndarray:
    """Logits (N, K) float32 of images (N, H, W, C) uint8 under a model in evaluation mode."""
    parts = []
    for start in range(0, len(images), batch):
        x = torch.from_numpy(np.ascontiguousarray(images[start : start + batch])).to(device)
        parts.append(model(normalise(x, facts)).float().cpu().numpy())
    return np.concatenate(parts)
