"""What an algorithm of domain adaptation is: an inner maximisation and an outer loss. The loop is in `loop`.

Tensors have a leading replica axis: images (R, B, C, H, W) in [0, 1], labels (R, B), losses (R,).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch

from redteam.learn.perturb import Ball, Draw, ce, pgd
from redteam.threats.evasion.adapt.divergence import critic_loss
from redteam.threats.evasion.adapt.networks import Networks

# Whence labels of target images come: none; the Natural DANN trained before, as it is; or that one to begin with,
# replaced at validations by the model being trained, by the algorithm's `refresh` rule.
Pseudo = Literal["none", "frozen", "refreshed"]
# latest: always. source-clean, source-pgd: where the model's validation accuracy of that name is its best so far.
# oracle: where its clean accuracy on labelled target validation images is (the released rule).
Refresh = Literal["latest", "source-clean", "source-pgd", "oracle"]


@dataclass(frozen=True)
class Step:
    """One update: both domains' batches, the networks, and the inner maximiser.

    number: of this update, from 0. xt, pseudo: None where there is no target domain, or no pseudo-labels.
    ball: of this update; its radius grows over the ramp, and the inner step with it.
    """

    number: int
    nets: Networks
    xs: torch.Tensor
    ys: torch.Tensor
    xt: torch.Tensor
    pseudo: torch.Tensor
    ball: Ball
    inner_steps: int
    inner_step: float
    critic_steps: int
    draw: Draw

    def ascend(self, loss: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """PGD from a random start that maximises `loss` over images in the ball; no gradient of parameters is taken."""
        with self.nets.frozen():
            return pgd(loss, x, self.ball, steps=self.inner_steps, step=self.inner_step, draw=self.draw)


Loss = tuple[str, torch.Tensor]


class Algorithm(Protocol):
    """One algorithm. name, version, settings: what identifies it; a change of what it computes is another version.

    groups: what it trains, of `model`, `critic`, `teacher`. adapts: whether it needs a target domain.
    """

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def groups(self) -> tuple[str, ...]: ...

    @property
    def adapts(self) -> bool: ...

    @property
    def pseudo(self) -> Pseudo: ...

    @property
    def refresh(self) -> Refresh: ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """Its config as plain JSON values."""

    def inner(self, step: Step) -> Any:
        """The inner maximisation: whatever `outer` needs, with no gradient attached."""

    def outer(self, step: Step, inner: Any) -> Iterator[Loss]:
        """Yields (group, losses (R,)); the loop updates that group by them before it asks for the next."""


@dataclass(frozen=True)
class Erm:
    """Ordinary training on the labelled source: no defence."""

    name: str = "erm"
    version: str = "1"
    groups: tuple[str, ...] = ("model",)
    adapts: bool = False
    pseudo: Pseudo = "none"
    refresh: Refresh = "latest"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def inner(self, step: Step) -> None:
        """None."""

    def outer(self, step: Step, inner: None) -> Iterator[Loss]:
        """CE of the source."""
        yield "model", ce(step.nets.logits(step.xs), step.ys).mean(-1)


@dataclass(frozen=True)
class Dann:
    """Natural DANN: CE of the source minus `weight` times the critic's loss. Source: [ganin2016dann]."""

    weight: float = 1.0
    name: str = "dann"
    version: str = "1"
    groups: tuple[str, ...] = ("model", "critic")
    adapts: bool = True
    pseudo: Pseudo = "none"
    refresh: Refresh = "latest"

    @property
    def settings(self) -> Mapping[str, Any]:
        """Its weight."""
        return {"weight": self.weight}

    def inner(self, step: Step) -> None:
        """None."""

    def outer(self, step: Step, inner: None) -> Iterator[Loss]:
        """`critic_steps` updates of the critic, then one of the classifier, on the same features."""
        nets = step.nets
        zs, zt = nets.features(step.xs), nets.features(step.xt)
        yield from train_critic(step, zs, zt)
        fooled = critic_loss(nets.critic(zs), nets.critic(zt))
        yield "model", ce(nets.head(zs), step.ys).mean(-1) - self.weight * fooled


def train_critic(step: Step, zs: torch.Tensor, zt: torch.Tensor) -> Iterator[Loss]:
    """`critic_steps` updates of the critic on features that do not move.

    The released code spends whole updates, inner maximisation included, on the critic alone; here each serves both.
    """
    for _ in range(step.critic_steps):
        yield "critic", critic_loss(step.nets.critic(zs.detach()), step.nets.critic(zt.detach()))
