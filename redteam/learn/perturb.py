"""Perturbations of images: balls of a norm, and projected gradient ascent inside them.

Images are (..., C, H, W) in [0, 1]; any leading axes (replicas, batch) are examples. Training (inner maximisation)
and attacks share what is here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from redteam.core.errors import ConfigError
from redteam.core.seeding import SeedPath

Norm = Literal["Linf", "L2"]
Draw = Callable[[torch.Size], torch.Tensor]
_TINY = 1e-12


def parse_eps(value: float | str) -> float:
    """A radius in pixels of [0, 1]: a number, or a fraction such as `8/255`.

    Raises:
        ConfigError: not a number, or not in [0, inf).
    """
    parts = str(value).split("/")
    try:
        numbers = [float(p) for p in parts]
        eps = numbers[0] / numbers[1] if len(numbers) == 2 else numbers[0]
    except (ValueError, ZeroDivisionError):
        numbers, eps = [], -1.0
    if not 1 <= len(numbers) <= 2 or not 0 <= eps < float("inf"):
        raise ConfigError(f"eps: expected a radius of at least 0 such as 0.1 or 8/255, got '{value}'")
    return eps


def uniform(seeds: SeedPath, device: torch.device) -> Draw:
    """Uniform numbers in [0, 1) at the start of a stream: the same on every device."""
    generator = seeds.torch()
    return lambda shape: torch.rand(shape, generator=generator).to(device)


def lengths(delta: torch.Tensor, norm: Norm) -> torch.Tensor:
    """The norm of each example's perturbation: (..., C, H, W) to (...)."""
    flat = delta.flatten(-3)
    return flat.abs().amax(-1) if norm == "Linf" else flat.norm(dim=-1)


def _per_example(values: torch.Tensor) -> torch.Tensor:
    return values[..., None, None, None]


@dataclass(frozen=True, slots=True)
class Ball:
    """All images in [0, 1] within `eps` of one, by `norm`."""

    norm: Norm
    eps: float

    def project(self, moved: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The images nearest to `moved` in the ball around x, then clipped to [0, 1] (which leaves the ball not)."""
        delta = moved - x
        if self.norm == "Linf":
            delta = delta.clamp(-self.eps, self.eps)
        else:
            factor = (self.eps / lengths(delta, "L2").clamp_min(_TINY)).clamp_max(1.0)
            delta = delta * _per_example(factor)
        return (x + delta).clamp(0.0, 1.0)

    def start(self, x: torch.Tensor, draw: Draw) -> torch.Tensor:
        """A random image in the ball: uniform in the cube; in the L2 ball, of uniform direction and length.

        draw: (shape) -> uniform numbers in [0, 1).
        """
        noise = 2 * draw(x.shape) - 1
        if self.norm == "L2":
            # Uniform numbers to normal ones, whose direction is uniform.
            noise = torch.erfinv(noise.clamp(-1 + 1e-6, 1 - 1e-6))
            size = draw(torch.Size((*x.shape[:-3], 1, 1, 1)))
            noise = noise / _per_example(lengths(noise, "L2").clamp_min(_TINY)) * size
        return self.project(x + self.eps * noise, x)

    def ascend(self, moved: torch.Tensor, gradient: torch.Tensor, step: float) -> torch.Tensor:
        """One step of length `step` of steepest ascent in the norm; not yet projected."""
        if self.norm == "Linf":
            return moved + step * gradient.sign()
        return moved + step * gradient / _per_example(lengths(gradient, "L2").clamp_min(_TINY))


def pgd(
    loss: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    ball: Ball,
    *,
    steps: int,
    step: float,
    draw: Draw | None,
) -> torch.Tensor:
    """Projected gradient ascent: the last iterate, with no gradient attached.

    loss: images (..., C, H, W) to one number an example, of any shape; the examples' losses must not depend on each
    other's images for the result to be each one's own. draw: for the random start; None starts at x.
    Only gradients with respect to the images are taken. Source: [madry2018towards].
    """
    moved = x.detach() if draw is None else ball.start(x, draw)
    for _ in range(steps):
        moved = moved.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(moved).sum(), moved)
        moved = ball.project(ball.ascend(moved.detach(), gradient, step), x)
    return moved.detach()


# ---------------------------------------------------------------- losses, one number an example


def ce(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of logits (..., K) with labels (...)."""
    flat = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
    return flat.view(labels.shape)


def kl(logits: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """KL(softmax(reference) || softmax(logits)), both (..., K), as in TRADES. Source: [zhang2019trades]."""
    p = reference.log_softmax(-1)
    return (p.exp() * (p - logits.log_softmax(-1))).sum(-1)


def margin(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The largest other logit minus the label's: above 0 where the label loses. Source: [carlini2017towards]."""
    own = logits.gather(-1, labels[..., None])[..., 0]
    others = logits.scatter(-1, labels[..., None], float("-inf"))
    return others.amax(-1) - own
