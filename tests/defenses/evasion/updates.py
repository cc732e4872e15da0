"""Updates made by hand, over tiny networks in double precision, of every algorithm of robust adaptation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from defenses.evasion import (
    artuda,
    at_source,
    at_target,
    at_uda,
    dann,
    dart,
    srouda,
    trades_source,
    trades_target,
)
from redteam.core.config import build
from redteam.core.seeding import SeedPath
from redteam.learn.perturb import Ball, Draw, Norm
from redteam.threats.evasion.adapt.algorithm import Algorithm, Step
from redteam.threats.evasion.adapt.networks import Classifier, Networks, critic
from tests.conftest import context

SHAPE, CLASSES, FEATURES = (2, 3, 3), 3, 4
MODULES = {
    "dann": dann, "at-source": at_source, "at-target": at_target, "trades-source": trades_source,
    "trades-target": trades_target, "at-uda": at_uda, "artuda": artuda, "srouda": srouda, "dart": dart,
}  # fmt: skip
# The testbed's eleven, and DART with the divergences it does not release.
ELEVEN: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in MODULES if name != "dart"),
    *(("dart", {"source": source}) for source in ("clean", "adversarial", "kl")),
]
OTHERS = ({"divergence": "mmd"}, {"divergence": "coral"}, {"weight": 0.0})
EVERY = [*ELEVEN, *(("dart", values) for values in OTHERS)]


class Taken:
    """A target that hands back the algorithm it is to be trained by."""

    def trained_by(self, algorithm: Algorithm) -> Algorithm:
        return algorithm


def algorithm(name: str, **values: Any) -> Algorithm:
    """What the defence of that name trains by."""
    spec = MODULES[name].SPEC
    config = build(spec.config, values, base=spec.presets["default"].config)
    return spec.run(Taken(), config, context())


def network(seed: int) -> nn.Module:
    with SeedPath(seed).as_global():
        body = nn.Sequential(nn.Flatten(), nn.Linear(18, FEATURES), nn.Tanh())
        return Classifier(body, nn.Linear(FEATURES, CLASSES)).double()


def networks(seeds: Sequence[int], groups: Sequence[str] = ("model", "critic", "teacher")) -> Networks:
    """One replica a seed."""
    made: dict[str, list[nn.Module]] = {}
    if "model" in groups:
        made["model"] = [network(s) for s in seeds]
    if "critic" in groups:
        made["critic"] = []
        for s in seeds:
            with SeedPath(s, ("critic",)).as_global():
                made["critic"].append(critic(FEATURES, 5, 2).double())
    if "teacher" in groups:
        made["teacher"] = [network(1000 + s) for s in seeds]
    return Networks(made)


def draws(seeds: Sequence[int]) -> Draw:
    """Uniform numbers (R, ...) in double precision, each replica's from a stream of its own."""
    generators = [SeedPath(s, ("starts",)).torch() for s in seeds]

    def draw(shape: torch.Size) -> torch.Tensor:
        return torch.stack([torch.rand(shape[1:], generator=g, dtype=torch.float64) for g in generators])

    return draw


def make_step(
    seeds: Sequence[int] = (0,), *, batch: int = 6, norm: Norm = "Linf", eps: float = 0.2, inner_steps: int = 5,
    critic_steps: int = 1, groups: Sequence[str] = ("model", "critic", "teacher"),
) -> Step:  # fmt: skip
    """A step of which each replica depends on its own seed alone."""
    parts = []
    for s in seeds:
        g = SeedPath(s, ("data",)).torch()
        xs, xt = (torch.rand((batch, *SHAPE), generator=g, dtype=torch.float64) for _ in range(2))
        ys, pseudo = (torch.randint(CLASSES, (batch,), generator=g) for _ in range(2))
        parts.append((xs, ys, 0.5 * xt, pseudo))
    xs, ys, xt, pseudo = (torch.stack(p) for p in zip(*parts, strict=True))
    return Step(
        number=0, nets=networks(seeds, groups), xs=xs, ys=ys, xt=xt, pseudo=pseudo, ball=Ball(norm, eps),
        inner_steps=inner_steps, inner_step=eps / 2, critic_steps=critic_steps, draw=draws(seeds),
    )  # fmt: skip


@dataclass
class Seen:
    """One loss that an algorithm gave, and its gradient in the parameters of each group (None: does not reach)."""

    group: str
    losses: torch.Tensor
    gradients: dict[str, list[torch.Tensor | None]]


def update(algorithm: Algorithm, step: Step, lr: float = 0.1, inner: Any = None) -> list[Seen]:
    """One update by plain gradient descent, as the loop makes it with Adam."""
    seen = []
    found = algorithm.inner(step) if inner is None else inner
    for group, losses in algorithm.outer(step, found):
        params = step.nets.params
        flat = [(name, p) for name, tensors in params.items() for p in tensors.values()]
        taken = torch.autograd.grad(losses.sum(), [p for _, p in flat], allow_unused=True)
        gradients: dict[str, list[torch.Tensor | None]] = {name: [] for name in params}
        for (name, p), gradient in zip(flat, taken, strict=True):
            gradients[name].append(gradient)
            if name == group and gradient is not None:
                with torch.no_grad():
                    p -= lr * gradient
        seen.append(Seen(group, losses.detach(), gradients))
    return seen
