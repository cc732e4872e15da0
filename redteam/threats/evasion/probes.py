"""Sanity probes of a network: what can make an attack look weaker than the network is strong.

Each is one measurement on the clean test images with one number and the number of images it is of; `flags` says
which of them a reader must know of. Meanings and thresholds are those of docs/flags.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import prod
from typing import Any

import pandas as pd
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from redteam.core.stats import wilson
from redteam.learn.perturb import Ball, Draw, Norm, ce, margin, pgd

PROBE_COLUMNS = ("victim", "name", "value", "n")
# Images that a probe asks about at most, and those that it takes gradients of.
ASKED, ATTACKED = 200, 100
_SAME = 1e-4
_ZERO = 0.01
_STEPS = 20
# Classes below which the targeted DLR loss, which divides by the gap to the fourth logit, is not defined.
_DLR_CLASSES = 4
# Values of images that go through a network at once where gradients are taken.
_BATCH_VALUES = 3 * 2**20

Rows = list[tuple[str, float, int]]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def batch_size(x: torch.Tensor) -> int:
    """How many images (N, C, H, W) go through a network at once."""
    return max(8, min(500, _BATCH_VALUES // max(1, x[:1].numel())))


def batches(x: torch.Tensor) -> Iterator[slice]:
    """Slices of images (N, C, H, W), each of at most `batch_size`."""
    size = batch_size(x)
    yield from (slice(start, start + size) for start in range(0, len(x), size))


def attacked(
    network: nn.Module, x: torch.Tensor, labels: torch.Tensor, ball: Ball, draw: Draw, steps: int = _STEPS
) -> torch.Tensor:
    """The scorer's own PGD on the cross-entropy: `steps` steps of 2.5 radii in all, from a random start. (N, K).

    Returns the logits of where it ends. A network without a gradient leaves the images at their random start.
    """
    found = []
    for rows in batches(x):
        y = labels[rows]

        def loss(z: torch.Tensor, y: torch.Tensor = y) -> torch.Tensor:
            # The second term is zero, and gives a gradient to networks that have none.
            return ce(network(z), y) + 0 * z.flatten(1).sum(1)

        moved = pgd(loss, x[rows], ball, steps=steps, step=2.5 * ball.eps / steps, draw=draw)
        with torch.no_grad():
            found.append(network(moved))
    return torch.cat(found)


# ---------------------------------------------------------------- single probes


def repeated(network: nn.Module, x: torch.Tensor) -> tuple[float, int]:
    """The largest difference of logits between two passes of the same images, and how many answers differ.

    The difference is relative to the largest logit where that is above 1.
    """
    with torch.no_grad():
        first, second = network(x), network(x)
    size = max(1.0, float(first.abs().max()))
    changed = int((first.argmax(-1) != second.argmax(-1)).sum())
    return float((first - second).abs().max()) / size, changed


def softmax_rows(logits: torch.Tensor) -> int:
    """How many outputs are probabilities: not negative, and with a sum of one to within 1e-4."""
    likely = (logits >= 0).all(-1) & ((logits.sum(-1) - 1).abs() < _SAME)
    return int(likely.sum())


def without_gradient(network: nn.Module, x: torch.Tensor, labels: torch.Tensor, loss: Loss) -> int:
    """How many images have a gradient of the loss that is zero everywhere, not finite, or not there at all."""
    count = 0
    for rows in batches(x):
        z = x[rows].detach().requires_grad_()
        value = loss(network(z), labels[rows]).sum()
        if not value.requires_grad:
            count += len(z)
            continue
        (gradient,) = torch.autograd.grad(value, z, allow_unused=True)
        if gradient is None:
            count += len(z)
            continue
        flat = gradient.flatten(1)
        count += int(((flat == 0).all(1) | ~flat.isfinite().all(1)).sum())
    return count


def full_ball(norm: Norm, shape: Sequence[int]) -> Ball:
    """The ball around any image that holds every other: radius 1, or the square root of the values of an image."""
    return Ball(norm, 1.0 if norm == "Linf" else float(prod(shape)) ** 0.5)


@contextmanager
def watching() -> Iterator[list[str]]:
    """Within: each call of autograd from Python, and each step of an optimiser, adds its name to the list.

    Functions are replaced for the while, never a tracer: `sys.settrace` would end coverage and debuggers. The
    private one is what both of autograd's functions call, also where a module imported them by name.
    """
    seen: list[str] = []

    def watched(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            seen.append(name)
            return original(*args, **kwargs)

        return call

    places: list[tuple[Any, str]] = [
        (torch.autograd, "grad"),
        (torch.autograd, "backward"),
        (torch.Tensor, "backward"),
    ]
    places += (
        [(torch.autograd, "_engine_run_backward")] if hasattr(torch.autograd, "_engine_run_backward") else []
    )
    with ExitStack() as stack:
        for owner, name in places:
            original = getattr(owner, name)
            stack.callback(setattr, owner, name, original)
            setattr(owner, name, watched(name, original))
        handle = register_optimizer_step_pre_hook(lambda *_: seen.append("step"))
        stack.callback(handle.remove)
        yield seen


def calls_of_autograd(network: nn.Module, x: torch.Tensor) -> int:
    """How often one forward pass calls autograd or an optimiser."""
    with watching() as seen, torch.enable_grad():
        network(x)
    return len(seen)


# ---------------------------------------------------------------- all of them


def probe(network: nn.Module, x: torch.Tensor, labels: torch.Tensor, norm: Norm, draw: Draw) -> Rows:
    """Every probe of one network: (name, value, images it is of).

    x: (N, C, H, W) in [0, 1]. labels: (N,). draw: uniform numbers for random starts. Gradients are taken of the
    first `ATTACKED` of the first `ASKED` images that the network reads right.
    """
    x, labels = x[:ASKED], labels[:ASKED]
    n = len(x)
    difference, changed = 0.0, 0
    logits = []
    for rows in batches(x):
        d, c = repeated(network, x[rows])
        difference, changed = max(difference, d), changed + c
        with torch.no_grad():
            logits.append(network(x[rows]))
    out = torch.cat(logits)
    right = torch.nonzero(out.argmax(-1) == labels)[:ATTACKED, 0]
    xr, yr = x[right], labels[right]
    left = 0
    if len(xr):
        far = attacked(network, xr, yr, full_ball(norm, x.shape[1:]), draw)
        left = int((far.argmax(-1) == yr).sum())
    return [
        ("classes", float(out.shape[1]), n),
        ("logit-difference", difference, n),
        ("answers-differ", float(changed), n),
        ("probabilities", float(softmax_rows(out)), n),
        ("zero-gradient-ce", float(without_gradient(network, xr, yr, ce)), len(xr)),
        ("zero-gradient-margin", float(without_gradient(network, xr, yr, margin)), len(xr)),
        ("left-in-the-full-ball", float(left), len(xr)),
        ("autograd-in-forward", float(calls_of_autograd(network, x[:2])), min(2, n)),
    ]


def flags(probes: pd.DataFrame) -> tuple[str, ...]:
    """The flags that the probes of any victim raise."""
    raised: list[str] = []
    for _, part in probes.groupby("victim"):
        counts = zip(part["value"].astype(float), part["n"].astype(int), strict=True)
        raised += _of_one(dict(zip(part["name"].astype(str), counts, strict=True)))
    return tuple(dict.fromkeys(raised))


def _of_one(found: dict[str, tuple[float, int]]) -> list[str]:
    def value(name: str) -> float:
        return found.get(name, (0.0, 0))[0]

    def share(name: str) -> float:
        count, n = found.get(name, (0.0, 0))
        return count / n if n else 0.0

    classes = value("classes")
    left, n = found.get("left-in-the-full-ball", (0.0, 0))
    stands = wilson(round(left), n)[0] if n else 0.0
    checks = {
        "randomised-output": value("logit-difference") > _SAME or value("answers-differ") > 0,
        "softmax-output": share("probabilities") == 1,
        "zero-gradients": max(share("zero-gradient-ce"), share("zero-gradient-margin")) > _ZERO,
        "not-at-chance": bool(classes) and stands > 1 / classes,
        "optimises-in-forward": value("autograd-in-forward") > 0,
        "few-classes": 0 < classes < _DLR_CLASSES,
        "oracle-selected": value("target-labels-used") > 0,
    }
    return [name for name, up in checks.items() if up]
