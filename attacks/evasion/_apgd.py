"""Auto-PGD: steepest ascent with momentum whose step is halved where it makes no progress.

Source: [croce2020autoattack] Algorithm 1, read in the authors' code. Two departures: an example that is fooled is
left aside (it counts as broken whatever follows), and the first iterate's progress is measured from the start,
where the released code measures it from a loss of 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch

from attacks.evasion._attack import Attempt
from attacks.evasion._meter import Meter
from redteam.core.seeding import SeedPath
from redteam.learn.perturb import Ball, ce, lengths

RHO, MOMENTUM = 0.75, 0.75
# Below so many classes the targeted DLR loss, which needs the fourth largest logit, is not defined.
DLR_CLASSES = 4
_TINY = 1e-12

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(logits (b, K), labels (b,), target classes (b,)) -> (b,), larger where the attack is nearer its end."""


def untargeted_ce(logits: torch.Tensor, y: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with the label, whatever the target class."""
    return ce(logits, y)


def targeted_dlr(logits: torch.Tensor, y: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The targeted difference of logits ratio, for at least four classes. Source: [croce2020autoattack] Eq. 7."""
    top = logits.topk(DLR_CLASSES, dim=-1).values
    scale = top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + _TINY
    return targeted_margin(logits, y, other) / scale


def targeted_margin(logits: torch.Tensor, y: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The target class's logit minus the label's: what stands in for DLR below four classes."""
    return (logits.gather(-1, other[:, None]) - logits.gather(-1, y[:, None]))[:, 0]


def checkpoints(steps: int) -> list[int]:
    """After how many steps progress is looked at: .22 n, then shorter by .03 n each time, at least .06 n."""
    period, out = max(int(0.22 * steps), 1), [0]
    while out[-1] + period <= steps:
        out.append(out[-1] + period)
        period = max(period - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
    return out[1:]


@dataclass
class _State:
    """One entry an example still attacked. local: (b,) its place in the chunk; gained: improvements of the period."""

    local: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor
    other: torch.Tensor
    moved: torch.Tensor
    before: torch.Tensor
    gradient: torch.Tensor
    loss: torch.Tensor
    best: torch.Tensor
    best_gradient: torch.Tensor
    best_loss: torch.Tensor
    checked_loss: torch.Tensor
    step: torch.Tensor
    gained: torch.Tensor
    halved: torch.Tensor

    def leave(self, fooled: torch.Tensor) -> None:
        """Leave the fooled examples aside."""
        for f in fields(self):
            setattr(self, f.name, getattr(self, f.name)[~fooled])

    def advance(self, ball: Ball, momentum: float) -> None:
        """One step of ascent, with momentum. Source: Eq. 2 and 3."""
        ascent = ball.ascend(torch.zeros_like(self.gradient), self.gradient, 1.0)
        z = ball.project(self.moved + self.step * ascent, self.x)
        mixed = self.moved + momentum * (z - self.moved) + (1 - momentum) * (self.moved - self.before)
        self.before, self.moved = self.moved, ball.project(mixed, self.x)

    def note(self, loss: torch.Tensor, gradient: torch.Tensor) -> None:
        """Take in the loss and gradient at `moved`."""
        self.gained = self.gained + (loss > self.loss)
        better = loss > self.best_loss
        at = better[:, None, None, None]
        self.best = torch.where(at, self.moved, self.best)
        self.best_gradient = torch.where(at, gradient, self.best_gradient)
        self.best_loss = torch.where(better, loss, self.best_loss)
        self.loss, self.gradient = loss, gradient

    def check(self, period: int) -> None:
        """Halve the step and go back to the best point, where a period of steps was of no use."""
        stuck = (self.gained <= RHO * period) | (~self.halved & (self.checked_loss >= self.best_loss))
        at = stuck[:, None, None, None]
        self.step = torch.where(at, self.step / 2, self.step)
        self.moved = torch.where(at, self.best, self.moved)
        self.gradient = torch.where(at, self.best_gradient, self.gradient)
        self.halved, self.checked_loss, self.gained = stuck, self.best_loss, torch.zeros_like(self.gained)


def start(x: torch.Tensor, ball: Ball, generator: torch.Generator) -> torch.Tensor:
    """A random point on the sphere around x: of random direction, at the full radius; then clipped to [0, 1]."""
    if ball.norm == "Linf":
        noise = 2 * torch.rand(x.shape, generator=generator) - 1
    else:
        noise = torch.randn(x.shape, generator=generator)
    noise = noise / (lengths(noise, ball.norm)[:, None, None, None] + _TINY)
    return (x + ball.eps * noise.to(x.device)).clamp(0.0, 1.0)


def _ask(
    net: Meter, loss: Loss, moved: torch.Tensor, y: torch.Tensor, other: torch.Tensor, gradient: bool = True
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(which fool the network, their losses, the gradients or zeros) at `moved`."""
    moved = moved.detach().requires_grad_(gradient)
    with torch.set_grad_enabled(gradient):
        logits = net(moved)
        values = loss(logits, y, other)
    slope = torch.autograd.grad(values.sum(), moved)[0] if gradient else torch.zeros_like(moved)
    return logits.detach().argmax(-1) != y, values.detach(), slope


def apgd(
    net: Meter, loss: Loss, x: torch.Tensor, y: torch.Tensor, other: torch.Tensor, ball: Ball, *, steps: int,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """One run of `steps` steps from a random start, of the examples that `net.rows` names.

    x: (b, C, H, W). y, other: (b,) labels and target classes. Returns the first image that fools, or else the one of
    highest loss, (b, C, H, W); and which fool, (b,) bool.
    """
    rows, out, done = net.rows, x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    places = torch.arange(len(x), device=x.device)
    moved = start(x, ball, generator)
    fooled, values, gradient = _ask(net, loss, moved, y, other)
    step = torch.full((len(x), 1, 1, 1), 2 * ball.eps, dtype=x.dtype, device=x.device)
    s = _State(places, x, y, other, moved, moved, gradient, values, moved, gradient, values, values, step,
               torch.zeros_like(y), torch.ones_like(done))  # fmt: skip
    marks, last = checkpoints(steps), 0
    for i in range(steps + 1):
        if i:
            s.advance(ball, MOMENTUM if i > 1 else 1.0)
            net.rows = rows[s.local.cpu()]
            fooled, values, gradient = _ask(net, loss, s.moved, s.y, s.other, gradient=i < steps)
            s.note(values, gradient)
        if bool(fooled.any()):
            out[s.local[fooled]], done[s.local[fooled]] = s.moved[fooled], True
            s.leave(fooled)
        if not len(s.local):
            break
        if i in marks:
            s.check(i - last)
            last = i
    out[s.local] = s.best
    net.rows = rows
    return out, done


def attempt(*, steps: int, restarts: int, targets: int | None = None) -> Attempt:
    """APGD on cross-entropy, or, with targets, on the targeted DLR loss towards each of the classes of largest logit.

    targets: at most K - 1 are there. Each run is on what survived those before it.
    """

    def run(net: Meter, x: torch.Tensor, y: torch.Tensor, ball: Ball, seeds: SeedPath) -> torch.Tensor:
        generator, out = seeds.torch(), x.clone()
        others, loss = _targets(net, x, y, targets)
        left = torch.arange(len(x), device=x.device)
        for other in (row for row in others for _ in range(restarts)):
            net.rows = left.cpu()
            out[left], fooled = apgd(
                net, loss, x[left], y[left], other[left], ball, steps=steps, generator=generator
            )
            left = left[~fooled]
            if not len(left):
                break
        return out

    return run


@torch.no_grad()
def _targets(net: Meter, x: torch.Tensor, y: torch.Tensor, targets: int | None) -> tuple[torch.Tensor, Loss]:
    """Target classes (T, b), the likeliest wrong one first, and the loss that suits the number of classes."""
    if targets is None:
        return y[None], untargeted_ce
    logits = net(x)
    ranked = logits.scatter(-1, y[:, None], float("-inf")).argsort(dim=-1, descending=True)
    wrong = ranked[:, : min(targets, logits.shape[1] - 1)]
    return wrong.T, targeted_dlr if logits.shape[1] >= DLR_CLASSES else targeted_margin


def notes(targets: int, classes: int) -> dict[str, str | int]:
    """What a targeted attack does where there are few classes, for the artifact."""
    return {"targets": min(targets, classes - 1), "loss": "dlr" if classes >= DLR_CLASSES else "margin"}
