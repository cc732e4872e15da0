"""What evasion attacks are tested on: networks with known answers, and a small one trained on scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from attacks.evasion._attack import resolve
from redteam.core.context import Context
from redteam.core.device import Device
from redteam.core.seeding import SeedPath
from redteam.core.types import TargetKind
from redteam.data.nouns import ImageSet
from redteam.threats.evasion.adapt.config import DomainConfig
from redteam.threats.evasion.domain import DomainSplit
from redteam.threats.evasion.nouns import Fitted, to_tensor


@dataclass(frozen=True)
class FakeTarget:
    """Given networks and images, as a target of evasion."""

    networks: Sequence[nn.Module]
    images: ImageSet
    config: DomainConfig
    kind: TargetKind = "classifier"

    @property
    def classes(self) -> tuple[str, ...]:
        return self.images.classes

    def fit(self, ctx: Context) -> list[Fitted]:
        return [Fitted(n.eval()) for n in self.networks]

    def examples(self, ctx: Context) -> ImageSet:
        return self.images

    def split(self, ctx: Context) -> DomainSplit:
        raise AssertionError("an attack has no business with the split")

    def x(self) -> torch.Tensor:
        return to_tensor(self.images.images, torch.device("cpu"))

    def y(self) -> torch.Tensor:
        return torch.from_numpy(self.images.labels)


def fake(
    network: nn.Module | Sequence[nn.Module], images: np.ndarray, labels: np.ndarray, *, classes: int,
    norm: str = "Linf", eps: float = 0.1,
) -> FakeTarget:  # fmt: skip
    """A target on images (N, H, W, C) uint8."""
    names = tuple(f"class {c}" for c in range(classes))
    networks = [network] if isinstance(network, nn.Module) else list(network)
    config = DomainConfig(norm=norm, eps=eps)  # type: ignore[arg-type]
    return FakeTarget(networks, ImageSet(images, labels.astype(np.int64), names), config)


def context(seed: int = 0, **changes: Any) -> Context:
    return replace(Context(Device("cpu"), SeedPath(seed, ("attack",))), **changes)


def run(module: Any, target: FakeTarget, ctx: Context | None = None, **knobs: Any) -> Any:
    """The artifact of an attack module's run, with these knobs over its config's own defaults."""
    spec = module.SPEC
    return spec.run(target, resolve(spec.config(**knobs), target), ctx or context())


def robust(artifact: Any) -> np.ndarray:
    """(V, E) share of examples that survived every attempt."""
    return (artifact.broken == -1).mean(-1)


class Linear(nn.Module):
    """logits = W (x - 1/2) + b. weight: (K, D)."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(len(weight)) if bias is None else bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x.flatten(1) - 0.5, self.weight, self.bias)


class Function(nn.Module):
    """Any function of images as a network."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def counted(module: Any, **knobs: Any) -> tuple[Any, int, int]:
    """A run on digits, and how many images and how many gradients of theirs its network saw."""
    inner, images, gradients = digits().networks[0], [], []

    def network(x: torch.Tensor) -> torch.Tensor:
        images.append(len(x))
        logits: torch.Tensor = inner(x)
        if logits.requires_grad:
            logits.register_hook(lambda g: gradients.append(len(g)))
        return logits

    target = at(replace(digits(), networks=[Function(network)]), norm="Linf", eps=0.12, n=90)
    return run(module, target, **knobs, batch=40, curve=(0.03,)), sum(images), sum(gradients)


def grey(n: int, size: int = 4, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Noise images of middling grey, so that a ball of 0.2 stays inside [0, 1]."""
    return np.random.default_rng(seed).integers(90, 166, (n, size, size, channels)).astype(np.uint8)


def two_class(n: int = 60, size: int = 4, seed: int = 0) -> tuple[Linear, np.ndarray, np.ndarray]:
    """A linear network of two classes, images it does not clip on, and the labels it gives them."""
    generator = SeedPath(seed, ("toy",)).torch()
    network = Linear(torch.randn(2, size * size, generator=generator))
    images = grey(n, size, seed=seed)
    return network, images, network(to_tensor(images, torch.device("cpu"))).argmax(-1).numpy()


class Small(nn.Module):
    """Two convolutions and a linear layer on 8 x 8 images."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 16, 3, 2, padding=1), nn.ReLU(), nn.Flatten(),
            nn.Linear(16 * 16, classes),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers((x - 0.3) / 0.35)
        return out


@cache
def digits(classes: int = 10, steps: int = 150, seed: int = 0) -> FakeTarget:
    """A network trained for a second on 8 x 8 digits below `classes`, with 600 of them to attack, at most."""
    from sklearn.datasets import load_digits

    data = load_digits()
    keep = data.target < classes
    images = np.round(data.images[keep] * 255 / 16).astype(np.uint8)[..., None]
    labels = data.target[keep].astype(np.int64)
    order = np.random.default_rng(seed).permutation(len(labels))
    images, labels = images[order], labels[order]
    cut = len(labels) * 2 // 3
    x, y = to_tensor(images[:cut], torch.device("cpu")), torch.from_numpy(labels[:cut])
    with SeedPath(seed, ("toy", "digits")).as_global():
        network = Small(classes)
        optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
        for _ in range(steps):
            batch = torch.randint(len(x), (64,))
            optimiser.zero_grad()
            F.cross_entropy(network(x[batch]), y[batch]).backward()
            optimiser.step()
        optimiser.zero_grad()
    return fake(network.eval(), images[cut:], labels[cut:], classes=classes)


def at(target: FakeTarget, *, norm: str, eps: float, n: int | None = None) -> FakeTarget:
    """The same target with another ball, on its first n images."""
    images = ImageSet(target.images.images[:n], target.images.labels[:n], target.images.classes)
    return replace(target, images=images, config=DomainConfig(norm=norm, eps=eps))  # type: ignore[arg-type]
