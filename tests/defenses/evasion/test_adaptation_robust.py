"""What the algorithms are for, where it is known what robust training must find.

Two pixels tell the class far apart and are right in nine images of ten; sixteen tell it by little and together are
right more often. A radius of 0.12 drowns the many and spares the two: the best robust classifier uses these alone
and is right, clean or perturbed, in nine of ten; the best ordinary one uses all.
"""

from __future__ import annotations

import pytest
import torch

from redteam.learn.perturb import Ball, ce, pgd
from redteam.threats.evasion.adapt.algorithm import Erm, Step
from redteam.threats.evasion.adapt.networks import Networks
from tests.defenses.evasion.test_adaptation import name_of
from tests.defenses.evasion.updates import EVERY, SHAPE, algorithm, draws, networks, update

BALL = Ball("Linf", 0.12)


def batch(seed: int, n: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (1, n, ...) and labels (1, n)."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (n,), generator=g)
    sign = (2 * y - 1).double()
    x = 0.5 + 0.08 * torch.randn((n, 18), generator=g, dtype=torch.float64) + 0.06 * sign[:, None]
    right = torch.where(torch.rand(n, generator=g) < 0.9, sign, -sign)
    x[:, :2] = 0.5 + 0.35 * right[:, None]
    return x.clamp(0, 1).view(1, n, *SHAPE), y[None]


def accuracies(nets: Networks) -> tuple[float, float]:
    """Clean, and under PGD."""
    x, y = batch(10**6, 500)
    with nets.frozen():
        moved = pgd(lambda z: ce(nets.logits(z), y), x, BALL, steps=20, step=0.015, draw=None)
        clean, robust = ((nets.logits(z).argmax(-1) == y).double().mean().item() for z in (x, moved))
    return clean, robust


def trained(one) -> Networks:
    """200 updates; the labels of the target are right, and the teacher is trained before on the source."""
    nets, draw = networks((0,)), draws((0,))
    teacher = list(nets.params["teacher"].values())
    for number in range(100):
        x, y = batch(5000 + number)
        loss = ce(nets.logits(x, "teacher"), y).mean()
        for p, gradient in zip(teacher, torch.autograd.grad(loss, teacher), strict=True):
            with torch.no_grad():
                p -= 0.5 * gradient
    for number in range(200):
        (xs, ys), (xt, yt) = batch(2 * number), batch(2 * number + 1)
        step = Step(
            number=number, nets=nets, xs=xs, ys=ys, xt=xt, pseudo=yt, ball=BALL, inner_steps=3, inner_step=0.06,
            critic_steps=1, draw=draw,
        )  # fmt: skip
        # SROUDA's teacher and student chase each other at longer steps.
        update(one, step, lr=0.2 if one.name == "srouda" else 0.5)
    return nets


def test_ordinary_training_is_accurate_and_does_not_resist():
    for one in (Erm(), algorithm("dann")):
        clean, robust = accuracies(trained(one))
        assert clean > 0.89 and robust < 0.6


@pytest.mark.parametrize("case", [c for c in EVERY if c[0] != "dann"], ids=name_of)
def test_robust_training_finds_what_resists(case):
    clean, robust = accuracies(trained(algorithm(case[0], **case[1])))
    assert clean > 0.87 and robust > 0.87
