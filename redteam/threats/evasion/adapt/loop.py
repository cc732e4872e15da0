"""The one loop of adaptation: batches of both domains, an algorithm's losses, validations, pseudo-labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from redteam.core.context import Context
from redteam.core.errors import TrainingError
from redteam.core.seeding import SeedPath
from redteam.learn.perturb import Ball, Draw
from redteam.threats.evasion.adapt.algorithm import Algorithm, Step
from redteam.threats.evasion.adapt.config import DomainConfig
from redteam.threats.evasion.adapt.networks import Networks, critic
from redteam.threats.evasion.adapt.select import Keeper, Validation, accuracy, labels_of
from redteam.threats.evasion.domain import DomainSplit
from redteam.threats.evasion.nouns import to_tensor

# Of everything a stage keeps: raise it when the same settings give other networks or take other states.
VERSION = "2"
_BETA2 = 0.9
# The refresh rules that compare a criterion with the predictor's own.
_RULES = {"source-clean": "source_clean", "source-pgd": "source_pgd", "oracle": "oracle_clean"}


@dataclass(frozen=True)
class Adapted:
    """What a training leaves. keeper: states by selector. history: rows (victim, step, criterion, value, n).

    pseudo: (R, n) the pseudo-labels of the target's training images when it ended, or None.
    """

    keeper: Keeper
    history: list[tuple[int, int, str, float, int]]
    pseudo: np.ndarray | None


class _Deck:
    """Row numbers in random order, without replacement until all were drawn; one generator a replica."""

    def __init__(self, n: int, batch: int, generator: torch.Generator) -> None:
        self._n, self._batch, self._generator = n, batch, generator
        self._left = torch.zeros(0, dtype=torch.long)

    def draw(self) -> torch.Tensor:
        """The next `batch` row numbers."""
        while len(self._left) < self._batch:
            self._left = torch.cat([self._left, torch.randperm(self._n, generator=self._generator)])
        taken, self._left = self._left[: self._batch], self._left[self._batch :]
        return taken


def draws(seeds: Sequence[SeedPath], device: torch.device) -> Draw:
    """Uniform numbers (R, ...): each replica's from a stream of its own."""
    generators = [s.torch() for s in seeds]

    def draw(shape: torch.Size) -> torch.Tensor:
        return torch.stack([torch.rand(shape[1:], generator=g) for g in generators]).to(device)

    return draw


class _Domain:
    """Images of one domain on the device, uint8 (n, C, H, W), and batches of them."""

    def __init__(
        self, images: np.ndarray, batch: int, seeds: Sequence[SeedPath], device: torch.device, name: str
    ) -> None:
        self.images = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(device)
        self._decks = [_Deck(len(images), batch, s.child("order", name).torch()) for s in seeds]

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Row numbers (R, B) and images (R, B, C, H, W) in [0, 1]."""
        rows = torch.stack([d.draw() for d in self._decks]).to(self.images.device)
        return rows, self.images[rows].float().div_(255)


def validation(
    split: DomainSplit, config: DomainConfig, predictor: Networks | None, device: torch.device
) -> Validation:
    """What states are judged on: the first `val_rows` validation images of each domain."""
    n = config.val_rows
    ball = Ball(config.norm, config.radius)
    xs = to_tensor(split.source_val.images[:n], device)
    ys = torch.from_numpy(split.source_val.labels[:n]).to(device)
    if predictor is None or not len(split.target_val):
        return Validation(xs, ys, ball, config.val_steps)
    xt = to_tensor(split.target_val.images[:n], device)
    yt = torch.from_numpy(split.target_val.labels[:n]).to(device)
    pseudo = predictor.logits(xt.expand(predictor.replicas, *xt.shape)).argmax(-1)
    return Validation(xs, ys, ball, config.val_steps, xt, yt, pseudo)


class Loop:
    """One training of R replicas, from freshly made networks to the states that selectors take."""

    def __init__(
        self, make: Callable[[SeedPath], nn.Module], split: DomainSplit, algorithm: Algorithm, config: DomainConfig,
        seeds: Sequence[SeedPath], ctx: Context, *, predictor: Networks | None = None,
    ) -> None:  # fmt: skip
        self.algorithm, self.config, self.seeds, self.ctx = algorithm, config, seeds, ctx
        device = ctx.device.torch()
        self.nets = Networks(self._groups(make, predictor, split, device))
        self.source = _Domain(split.source.images, config.batch_size, seeds, device, "source")
        self.labels = torch.from_numpy(split.source.labels).to(device)
        adapts = len(split.target) > 0
        self.target = _Domain(split.target, config.batch_size, seeds, device, "target") if adapts else None
        self.validation = validation(split, config, predictor, device)
        self.predictor = predictor
        self.pseudo: torch.Tensor | None = None
        if predictor is not None and self.target is not None and algorithm.pseudo != "none":
            self.pseudo = labels_of(predictor, self.target.images)
        self.draw = draws([s.child("starts") for s in seeds], device)
        self.optimizers = {
            group: torch.optim.Adam(
                list(params.values()), lr=config.lr_critic if group == "critic" else config.lr,
                betas=(config.beta1, _BETA2), weight_decay=0.0 if group == "critic" else config.weight_decay,
            )
            for group, params in self.nets.params.items()
        }  # fmt: skip
        self.refreshed: dict[int, float] = {}

    def _groups(
        self, make: Callable[[SeedPath], nn.Module], predictor: Networks | None, split: DomainSplit,
        device: torch.device,
    ) -> dict[str, list[nn.Module]]:  # fmt: skip
        models = [make(s.child("init")).to(device) for s in self.seeds]
        groups = {"model": models}
        if "critic" in self.algorithm.groups:
            with torch.no_grad():
                width = models[0].body(to_tensor(split.source.images[:2], device)).shape[1]  # type: ignore[operator]
            groups["critic"] = [_seeded(s.child("critic"), width, self.config).to(device) for s in self.seeds]
        if "teacher" in self.algorithm.groups:
            assert predictor is not None
            # As released: teacher and student both begin as the Natural DANN.
            groups["teacher"] = [make(s.child("init")).to(device) for s in self.seeds]
            for name in ("model", "teacher"):
                for index, network in enumerate(groups[name]):
                    network.load_state_dict(predictor.state(index))
        return groups

    def run(self, name: str) -> Adapted:
        """All updates, with a validation every `check_every` and at the end."""
        config, keeper = self.config, Keeper(len(self.seeds))
        history: list[tuple[int, int, str, float, int]] = []
        for number in range(config.steps):
            step = self._step(number)
            for group, losses in self.algorithm.outer(step, self.algorithm.inner(step)):
                self._update(group, losses, number)
            done = number + 1
            if done % config.check_every == 0 or done == config.steps:
                found = self.validation.measure(
                    self.nets, draws([s.child("validation") for s in self.seeds], self._device)
                )
                keeper.see(done, found, self.nets)
                history += list(self._rows(done, found))
                self._refresh(found)
            self.ctx.report(name, done, config.steps)
        pseudo = None if self.pseudo is None else self.pseudo.cpu().numpy()
        return Adapted(keeper, history, pseudo)

    @property
    def _device(self) -> torch.device:
        return self.labels.device

    def _step(self, number: int) -> Step:
        config = self.config
        rows, xs = self.source.batch()
        ramp = config.eps_ramp * config.steps
        share = min(1.0, (number + 1) / ramp) if ramp else 1.0
        xt = pseudo = torch.zeros(0, device=self._device)
        if self.target is not None:
            chosen, xt = self.target.batch()
            if self.pseudo is not None:
                pseudo = self.pseudo.gather(1, chosen)
        return Step(
            number=number, nets=self.nets, xs=xs, ys=self.labels[rows], xt=xt, pseudo=pseudo,
            ball=Ball(config.norm, share * config.radius), inner_steps=config.inner_steps,
            inner_step=share * config.inner_length, critic_steps=config.critic_steps, draw=self.draw,
        )  # fmt: skip

    def _update(self, group: str, losses: torch.Tensor, number: int) -> None:
        if not torch.isfinite(losses).all():
            raise TrainingError(
                f"{self.algorithm.name}: the loss of the {group} is {losses.tolist()} at update {number}; "
                "lower the learning rate (lr, lr_critic) or the weight of the divergence"
            )
        params = list(self.nets.params[group].values())
        for p, gradient in zip(
            params, torch.autograd.grad(losses.sum(), params, allow_unused=True), strict=True
        ):
            p.grad = gradient
        self.optimizers[group].step()

    def _rows(self, step: int, found: Mapping[str, np.ndarray]) -> Iterator[tuple[int, int, str, float, int]]:
        sizes = self.validation.sizes()
        for criterion, values in found.items():
            for victim, value in enumerate(values):
                yield victim, step, criterion, float(value), sizes[criterion]

    def _refresh(self, found: Mapping[str, np.ndarray]) -> None:
        """Let the model of today give the pseudo-labels, in the replicas where the algorithm's rule says so."""
        if self.algorithm.pseudo != "refreshed" or self.pseudo is None or self.target is None:
            return
        assert self.predictor is not None
        rule = self.algorithm.refresh
        better = np.ones(len(self.seeds), bool)
        if rule != "latest":
            if not self.refreshed:
                own = self._predictors_own(_RULES[rule])
                self.refreshed = dict(enumerate(map(float, own)))
            values = found[_RULES[rule]]
            better = np.array([values[r] > self.refreshed[r] for r in range(len(values))])
            self.refreshed = {r: max(v, float(values[r])) for r, v in self.refreshed.items()}
        if better.any():
            chosen = torch.from_numpy(better).to(self._device)[:, None]
            self.pseudo = torch.where(chosen, labels_of(self.nets, self.target.images), self.pseudo)

    def _predictors_own(self, criterion: str) -> np.ndarray:
        """The predictor's value of a rule's criterion: what the model must beat first."""
        assert self.predictor is not None
        v, nets = self.validation, self.predictor
        if criterion == "source_clean":
            return accuracy(nets, v.xs, v.ys.expand(nets.replicas, -1))
        if criterion == "oracle_clean":
            assert v.xt is not None and v.yt is not None
            return accuracy(nets, v.xt, v.yt.expand(nets.replicas, -1))
        return v.measure(nets, draws([s.child("validation") for s in self.seeds], self._device))[criterion]


def _seeded(seeds: SeedPath, width: int, config: DomainConfig) -> nn.Module:
    with seeds.as_global():
        return critic(width, config.critic_width, config.critic_layers)
