"""Experts and label optimisation: steps 1 and 2 of FLIP. The logits depend on no budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from attacks.poisoning._backdoor import known_rows, source_rows
from attacks.poisoning.flip.gradient import Sgd, logit_gradient, matching_gradient, regularizer_gradient
from redteam.core.context import Context
from redteam.core.errors import ConfigError, UnknownNameError
from redteam.core.seeding import SeedPath
from redteam.data.nouns import ImageSet
from redteam.learn.augment import Augmentation
from redteam.learn.models import NAMES, build
from redteam.learn.train import Recipe, Resident, State, Tensors, fit, normalise, steps_per_epoch
from redteam.threats.poisoning import triggers
from redteam.threats.poisoning.nouns import Trainable

if TYPE_CHECKING:
    from attacks.poisoning.flip import Config


@dataclass(frozen=True)
class ExpertData:
    """What the expert is trained on, with each row's clean counterpart.

    images, clean: (m, H, W, C) uint8, equal but for the m - n triggered rows at the end.
    labels: (m,) the expert's labels. rows: (m,) the training row each stems from.
    """

    images: np.ndarray
    clean: np.ndarray
    labels: np.ndarray
    rows: np.ndarray


def poison_rows(train: ImageSet, config: Config) -> np.ndarray:
    """The last n/K known source rows, repeated as configured.

    Raises:
        ConfigError: there is none.
    """
    known = known_rows(config, len(train))
    sources = source_rows(train, config)
    chosen = sources[max(0, len(sources) - known // len(train.classes)) :]
    if not len(chosen):
        raise ConfigError(
            f"known_fraction: none of the {known} rows known to the attacker is of the source class"
        )
    return np.tile(chosen, config.poison_repeats)


def expert_data(train: ImageSet, config: Config) -> ExpertData:
    """The known rows, then triggered copies of the last n/K source rows with the target's label.

    Raises:
        ConfigError: no source row is known.
    """
    known = known_rows(config, len(train))
    poisons = poison_rows(train, config)
    rows = np.concatenate([np.arange(known), poisons])
    stamped = triggers.apply(config.spec(), train.images[poisons], poisons)
    labels = np.concatenate([train.labels[:known], np.full(len(poisons), config.target_class)])
    images = np.concatenate([train.images[:known], stamped])
    return ExpertData(images, train.images[rows], labels.astype(np.int64), rows)


def expert_steps(target: Trainable, config: Config) -> int:
    """Training steps of an expert's epoch.

    Raises:
        UnknownNameError, ConfigError: no such expert model; no known source row; too few rows for a batch.
    """
    if config.expert_model is not None and config.expert_model not in NAMES:
        raise UnknownNameError("expert_model", config.expert_model, NAMES)
    rows = known_rows(config, len(target.train)) + len(poison_rows(target.train, config))
    return steps_per_epoch(rows, expert_recipe(target, config))


@dataclass(frozen=True, slots=True, order=True)
class Visit:
    """One pass of the label optimisation starts from this expert at this training step."""

    expert: int
    step: int


def draw_visits(config: Config, per_epoch: int, rng: np.random.Generator) -> list[Visit]:
    """Which snapshot each pass reads, drawn before any training so that no other is kept.

    The expert and the epoch are drawn anew for each pass; the place within the epoch goes round the
    multiples of `checkpoint_every`, the epoch's start and end excluded.

    Raises:
        ConfigError: an epoch is too short to hold a checkpoint.
    """
    assert config.checkpoint_every is not None  # resolved
    places = range(config.checkpoint_every, per_epoch, config.checkpoint_every)
    if not places:
        raise ConfigError(
            f"checkpoint_every: expected fewer than the {per_epoch} steps of an epoch, "
            f"got {config.checkpoint_every}"
        )
    visits = []
    for index in range(config.passes):
        expert = int(rng.integers(config.experts))
        epoch = int(rng.integers(config.first_epoch, config.expert_epochs))
        visits.append(Visit(expert, epoch * per_epoch + places[index % len(places)]))
    return visits


class Keeper:
    """A training hook that keeps the wanted snapshots and stops after the last of them."""

    def __init__(self, steps: set[int]) -> None:
        self.kept: dict[int, tuple[Tensors, Tensors]] = {}
        self._steps = steps

    def __call__(self, state: State) -> None:
        """Called before each step."""
        if state.step in self._steps:
            self.kept[state.step] = state.snapshot()
        state.stop = len(self.kept) == len(self._steps)


def expert_recipe(target: Trainable, config: Config) -> Recipe:
    """The target's own augmentation and optimiser, at a constant rate for the expert's epochs."""
    fields = {name: getattr(target.config, name) for name in Recipe.__slots__}
    return replace(
        Recipe(**fields), epochs=config.expert_epochs, lr=config.expert_lr, schedule="constant",
        batch_size=config.batch_size,
    )  # fmt: skip


def expert_model(target: Trainable, config: Config) -> Callable[[SeedPath], nn.Module]:
    """A maker of the attacker's surrogate: the target's architecture unless told otherwise."""
    height, width, channels = target.train.images.shape[1:]
    name = config.expert_model or target.config.model
    shape, classes = (int(height), int(width), int(channels)), len(target.train.classes)
    return lambda seeds: build(name, classes=classes, shape=shape, seeds=seeds)


def train_experts(
    target: Trainable, config: Config, data: Resident, visits: list[Visit], ctx: Context
) -> dict[Visit, tuple[Tensors, Tensors]]:
    """Train each expert that is visited, as far as its last visit, and keep what will be read."""
    recipe, make = expert_recipe(target, config), expert_model(target, config)
    snapshots: dict[Visit, tuple[Tensors, Tensors]] = {}
    for expert in sorted({v.expert for v in visits}):
        keeper = Keeper({v.step for v in visits if v.expert == expert})
        fit(make, data, recipe, [ctx.seeds.child("expert", expert)], ctx, hooks=[keeper], name="flip expert")
        snapshots |= {Visit(expert, step): kept for step, kept in keeper.kept.items()}
    return snapshots


def without_running_stats(model: nn.Module) -> nn.Module:
    """Make every batch normalisation use its batch alone and keep no statistics (in place).

    Expert and student gradients are taken in training mode with each input's own batch statistics,
    and forward-mode products cannot update running ones.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return model.train()


@dataclass
class LabelState:
    """The optimised logits (n, K) on the device, with the true labels (n,)."""

    logits: torch.Tensor
    labels: torch.Tensor

    def step(self, rows: torch.Tensor, gradient: torch.Tensor, config: Config) -> None:
        """One step on the rows of a batch; a row that occurs twice receives both parts.

        Dense momentum over all n rows, of which a batch touches a few, amounts to a step of
        lr / (1 - momentum) on those rows, spread over the next few batches; it is taken at once.
        """
        rate = config.label_lr / (1 - config.label_momentum)
        self.logits.index_add_(0, rows, gradient, alpha=-rate)
        if config.regularizer:
            self.logits -= rate * config.regularizer * regularizer_gradient(self.logits, self.labels)


def optimise_labels(target: Trainable, config: Config, ctx: Context) -> tuple[np.ndarray, np.ndarray]:
    """One run of steps 1 and 2. Returns logits (n, K) float32 and the mean loss of each pass."""
    data = expert_data(target.train, config)
    device, dtype = ctx.device.torch(), ctx.torch_dtype()
    resident = Resident.load(data.images, data.labels, target.facts, device)
    recipe = expert_recipe(target, config)
    visits = draw_visits(config, steps_per_epoch(len(resident), recipe), ctx.rng("visits"))
    snapshots = train_experts(target, config, resident, visits, ctx)
    model = without_running_stats(expert_model(target, config)(ctx.seeds.child("shape"))).to(device, dtype)
    labels = torch.from_numpy(target.train.labels).to(device)
    state = LabelState(
        config.logit_height * torch.nn.functional.one_hot(labels, len(target.train.classes)).to(dtype), labels
    )
    clean, rows = torch.from_numpy(data.clean).to(device), torch.from_numpy(data.rows).to(device)
    losses = [
        _label_pass(
            model, snapshots[visit], (resident, clean, rows), state, config, recipe,
            ctx.at("pass", index), lambda done, i=index: ctx.report("flip labels", i + done, config.passes),
        )
        for index, visit in enumerate(visits)
    ]  # fmt: skip
    return state.logits.float().cpu().numpy(), np.array(losses)


def _label_pass(
    model: nn.Module,
    snapshot: tuple[Tensors, Tensors],
    data: tuple[Resident, torch.Tensor, torch.Tensor],
    state: LabelState,
    config: Config,
    recipe: Recipe,
    ctx: Context,
    report: Callable[[float], Any],
) -> float:
    """Every row once, all batches from one snapshot. Triggered and clean rows share crop and flip."""
    resident, clean, rows = data
    dtype, device = state.logits.dtype, state.logits.device
    params, momenta = ({k: v.to(dtype) for k, v in part.items()} for part in snapshot)
    augmentation = Augmentation(recipe.pad, recipe.flip)
    generator = ctx.seeds.torch()
    order = torch.randperm(len(resident), generator=generator).to(device)
    draw = augmentation.draw(len(resident), generator).to(device)
    sgd = Sgd(recipe.momentum, recipe.weight_decay, recipe.nesterov)
    steps, total = steps_per_epoch(len(resident), recipe), 0.0

    def forward(p: Tensors, x: torch.Tensor) -> torch.Tensor:
        return functional_call(model, p, (x,))

    for index in range(steps):
        batch = slice(index * recipe.batch_size, (index + 1) * recipe.batch_size)
        chosen = order[batch]

        def view(images: torch.Tensor, chosen: torch.Tensor = chosen, batch: slice = batch) -> torch.Tensor:
            return normalise(augmentation.apply(images[chosen], draw[batch]), resident.facts, dtype)

        p = state.logits[rows[chosen]].softmax(1)
        loss, by_probability = matching_gradient(
            forward, params, momenta, (view(resident.images), resident.targets[chosen]), (view(clean), p), sgd
        )
        state.step(rows[chosen], logit_gradient(p, by_probability), config)
        total += float(loss)
        report((index + 1) / steps)
    return total / steps
