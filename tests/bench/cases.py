"""What is compared with what."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch.func import functional_call
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from attacks.poisoning.flip.craft import without_running_stats
from attacks.poisoning.flip.gradient import Sgd, logit_gradient, matching_gradient
from redteam.core.context import Context
from redteam.core.device import Device
from redteam.core.seeding import SeedPath
from redteam.data.nouns import DatasetFacts
from redteam.learn import models
from redteam.learn.train import Recipe, Resident, fit

Way = Callable[[], object]
FACTS = DatasetFacts(
    mean=(0.49, 0.48, 0.45), std=(0.2, 0.2, 0.2), pad=4, flip=True, source_class=1, target_class=0
)


def label_step(model_name: str, batch: int = 64) -> tuple[Way, Way]:
    """One label step: the literal double backward, and the closed form. float32, 3x32x32, channels last."""
    model = without_running_stats(models.build(model_name, classes=10, shape=(32, 32, 3), seeds=SeedPath(0)))
    model = model.to(memory_format=torch.channels_last)
    params = {k: v.detach() for k, v in model.named_parameters()}
    momenta = {k: 0.01 * torch.randn_like(v) for k, v in params.items()}
    clean = torch.randn(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch,))
    stamped, logits, sgd = clean + 0.1, 5 * F.one_hot(labels, 10).float(), Sgd(0.9, 2e-4, True)

    def forward(p: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return functional_call(model, p, (x,))

    def closed() -> torch.Tensor:
        p = logits.softmax(1)
        _, by_p = matching_gradient(forward, params, momenta, (stamped, labels), (clean, p), sgd)
        return logit_gradient(p, by_p)

    def literal() -> torch.Tensor:
        soft = logits.clone().requires_grad_(True)
        leaves = {k: v.clone().requires_grad_(True) for k, v in params.items()}

        def step(x: torch.Tensor, y: torch.Tensor, graph: bool) -> list[torch.Tensor]:
            loss = F.cross_entropy(forward(leaves, x), y)
            grads = torch.autograd.grad(loss, list(leaves.values()), create_graph=graph)
            out = []
            for (k, theta), g in zip(leaves.items(), grads, strict=True):
                g = g + 2e-4 * theta.detach()
                out.append(theta.detach() - 0.1 * (g + 0.9 * (0.9 * momenta[k] + g)))
            return out

        expert = [t.detach() for t in step(stamped, labels, False)]
        student = step(clean, soft.softmax(1), True)
        above = sum((s - e).square().sum() for s, e in zip(student, expert, strict=True))
        below = sum((p - e).square().sum() for p, e in zip(params.values(), expert, strict=True))
        return torch.autograd.grad(above / below, soft)[0]

    error = (closed() - literal()).abs().max() / literal().abs().max()
    assert error < 1e-3, f"the two ways differ by {error}"
    return literal, closed


class _Pictures(Dataset):
    """The usual data set: PIL image, random crop, flip, to tensor, normalise."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels
        self.transform = transforms.Compose([
            transforms.ToPILImage(), transforms.RandomCrop(images.shape[1], padding=4),
            transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(FACTS.mean, FACTS.std),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[index]), int(self.labels[index])


def epoch_of(model_name: str, n: int, **recipe: object) -> Way:
    """One epoch of the suite's own loop over n random images, 3x32x32."""
    images, labels = _random(n)
    data = Resident.load(images, labels, FACTS, torch.device("cpu"))
    settings = Recipe(**{"epochs": 1, "batch_size": 128, "schedule": "constant", **recipe})  # type: ignore[arg-type]
    ctx = Context(Device("cpu"), SeedPath(0))
    return lambda: fit(_maker(model_name), data, settings, [SeedPath(0)], ctx)


def plain_epoch(model_name: str, n: int) -> Way:
    """One epoch of a plain loop: DataLoader, torchvision transforms on PIL images, float32, NCHW."""
    images, labels = _random(n)
    loader = DataLoader(_Pictures(images, labels), 128, shuffle=True, drop_last=True)

    def run() -> None:
        model = _maker(model_name)(SeedPath(0)).train()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, nesterov=True, weight_decay=2e-4)
        for x, y in loader:
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def replicas(model_name: str, shape: tuple[int, int, int], count: int, batch: int) -> tuple[Way, Way]:
    """An epoch of several replicas: in a row, and stacked under vmap."""
    images, labels = _random(6 * batch, shape)
    facts = DatasetFacts(mean=(0.5,), std=(0.2,), pad=0, flip=False, source_class=1, target_class=0)
    data = Resident.load(images, labels, facts, torch.device("cpu"))
    recipe = Recipe(epochs=1, batch_size=batch, schedule="constant", pad=0, flip=False)
    ctx, seeds = Context(Device("cpu"), SeedPath(0)), [SeedPath(s) for s in range(count)]
    make = _maker(model_name, shape)
    return (
        lambda: fit(make, data, recipe, seeds, ctx, together=False),
        lambda: fit(make, data, recipe, seeds, ctx, together=True),
    )


def _random(n: int, shape: tuple[int, int, int] = (32, 32, 3)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, *shape)).astype(np.uint8), rng.integers(0, 10, n)


def _maker(name: str, shape: tuple[int, int, int] = (32, 32, 3)) -> Callable[[SeedPath], torch.nn.Module]:
    return lambda seeds: models.build(name, classes=10, shape=shape, seeds=seeds)
