"""PGD-20 on images of one network: ours, counted, against foolbox's LinfPGD.

Both get the same network, images, steps and start (none), and must give the same images. foolbox also takes
gradients of the parameters, as its users' networks have them; the second row spares it that.

python -m tests.bench.pgd
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
from torch import nn

from attacks.evasion._meter import Meter, frozen
from attacks.evasion._projected import Pgd, attempt
from redteam.core.device import set_threads
from redteam.core.seeding import SeedPath
from redteam.learn import models
from redteam.learn.perturb import Ball
from tests.bench.timing import Ratio, side_by_side

EPS, STEPS = 0.1, 20
Way = Callable[[], torch.Tensor]


def cases(model: str, size: int, n: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A fresh network, images (n, 3, size, size) and the labels it gives them."""
    network = models.build(model, classes=10, shape=(size, size, 3), seeds=SeedPath(0)).eval()
    x = torch.from_numpy(np.random.default_rng(0).random((n, 3, size, size), dtype=np.float32))
    with torch.no_grad():
        return network, x, network(x).argmax(-1)


def ours(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Way:
    """The attack as `redteam attack pgd` runs it on one chunk."""
    run, ball = attempt(Pgd(eps=EPS, steps=STEPS, random_start=False)), Ball("Linf", EPS)

    def way() -> torch.Tensor:
        with frozen(network):
            return run(Meter(network, len(x)), x, y, ball, SeedPath(0))

    return way


def foolboxes(network: nn.Module, x: torch.Tensor, y: torch.Tensor, *, spare: bool) -> Way:
    """foolbox's LinfPGD with steps of the same length. spare: no gradients of parameters."""
    import foolbox

    attack = foolbox.attacks.LinfPGD(rel_stepsize=2.5 / STEPS, steps=STEPS, random_start=False)
    model = foolbox.PyTorchModel(network, bounds=(0, 1))

    def way() -> torch.Tensor:
        with frozen(network) if spare else nullcontext():
            moved: torch.Tensor = attack.run(model, x, foolbox.criteria.Misclassification(y), epsilon=EPS)
        return moved

    return way


def compare(model: str, size: int, n: int, *, spare: bool, turns: int = 7) -> tuple[Ratio, float]:
    """CPU time of foolbox and of ours, and the share of pixels in which their images differ."""
    network, x, y = cases(model, size, n)
    slow, fast = foolboxes(network, x, y, spare=spare), ours(network, x, y)
    apart = ((slow() - fast()).abs() > 1e-5).float().mean().item()
    assert apart < 0.01, f"the two give other images: {apart:.1%} of pixels differ"
    return side_by_side(slow, fast, turns=turns), apart


def main() -> None:
    """Print the comparison as a Markdown table."""
    set_threads(1)
    print("| PGD-20, Linf | foolbox, images/s | ours, images/s | ratio | pixels that differ |")
    print("|---|---|---|---|---|")
    for model, size, n in (("digit-cnn-small", 16, 250), ("digit-cnn", 32, 24)):
        for spare in (False, True):
            r, apart = compare(model, size, n, spare=spare)
            beside = ", foolbox spared parameter gradients" if spare else ""
            print(
                f"| {model}, 3 x {size} x {size}, batch {n}{beside} | {n / r.slow_s:.0f} | {n / r.fast_s:.0f} | "
                f"**{r.ratio:.2f}** ({r.low:.2f} to {r.high:.2f}, {r.turns} turns) | {apart:.4%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
