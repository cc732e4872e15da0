"""Each sanity flag against a toy network that must raise it, and one that must not."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from redteam.learn.perturb import Ball, ce, margin
from redteam.threats.evasion import probes

N, CLASSES, SIDE = 40, 4, 4


def problem():
    """Images (N, 1, 4, 4) near grey whose class is the brightest row."""
    labels = torch.arange(N) % CLASSES
    x = torch.full((N, 1, SIDE, SIDE), 0.4)
    x[torch.arange(N), 0, labels] += 0.2
    return x + 0.01 * torch.arange(N)[:, None, None, None] / N, labels


class Rows(nn.Module):
    """Logits are the rows' brightness times a scale: right on all of `problem`."""

    def __init__(self, scale=10.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x):
        return self.scale * x.sum((1, 3))


class Randomised(Rows):
    def forward(self, x):
        return super().forward(x) + 0.01 * torch.randn(len(x), CLASSES)


class Softmax(Rows):
    def forward(self, x):
        return super().forward(x).softmax(-1)


class Rounded(Rows):
    """Rounding has a zero gradient everywhere."""

    def forward(self, x):
        return super().forward((x * 8).round() / 8)


class Detached(Rows):
    """No gradient reaches the images, though the parameter has one."""

    def forward(self, x):
        return super().forward(x.detach())


class Steps(nn.Module):
    """No gradient at all: the output is not differentiable in anything."""

    def forward(self, x):
        return nn.functional.one_hot(x.sum((1, 3)).argmax(-1), CLASSES).float() * 3


class Saturated(Rows):
    """So steep that the cross-entropy's gradient underflows to zero, while the margin's does not."""

    def __init__(self):
        super().__init__(1e4)


class Constant(nn.Module):
    """Always the same class, whatever the image."""

    def forward(self, x):
        return torch.tensor([1.0, 0.0, 0.0, 0.0]) + 0 * x.sum((1, 3))


class Denoiser(Rows):
    """Optimises its input before it answers."""

    def forward(self, x):
        with torch.enable_grad():
            z = x.detach().requires_grad_()
            (g,) = torch.autograd.grad(((z - 0.4) ** 2).sum(), z)
        return super().forward(x - 0.01 * g)


def rows_of(network, norm="Linf", x=None, labels=None):
    default_x, default_labels = problem()
    generator = torch.Generator().manual_seed(0)
    return probes.probe(
        network.eval(), default_x if x is None else x, default_labels if labels is None else labels, norm,
        lambda shape: torch.rand(shape, generator=generator),
    )  # fmt: skip


def flags_of(network, **kwargs):
    found = rows_of(network, **kwargs)
    return set(probes.flags(pd.DataFrame([(0, *r) for r in found], columns=list(probes.PROBE_COLUMNS))))


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_an_ordinary_network_raises_nothing(norm):
    assert flags_of(Rows(), norm=norm) == set()


@pytest.mark.parametrize(
    ("network", "flag"),
    [
        (Randomised(), "randomised-output"), (Softmax(), "softmax-output"), (Rounded(), "zero-gradients"),
        (Detached(), "zero-gradients"), (Steps(), "zero-gradients"), (Saturated(), "zero-gradients"),
        (Constant(), "not-at-chance"), (Denoiser(), "optimises-in-forward"),
    ],
)  # fmt: skip
def test_each_flag_is_raised_by_the_network_made_for_it(network, flag):
    assert flag in flags_of(network)


def test_saturation_is_seen_by_the_cross_entropy_alone():
    found = {name: value for name, value, _ in rows_of(Saturated())}
    assert found["zero-gradient-ce"] == N
    assert found["zero-gradient-margin"] == 0


def test_three_classes_are_too_few():
    class Three(Rows):
        def forward(self, x):
            return super().forward(x)[:, :3]

    x, labels = problem()
    keep = labels < 3
    assert flags_of(Three(), x=x[keep], labels=labels[keep]) == {"few-classes"}


def test_a_network_that_is_always_wrong_gives_no_gradient_to_judge():
    class Wrong(Rows):
        def forward(self, x):
            return -super().forward(x)

    found = {name: (value, n) for name, value, n in rows_of(Wrong())}
    assert found["zero-gradient-ce"] == (0, 0)
    assert flags_of(Wrong()) == set()


def test_not_at_chance_takes_more_than_a_few_left():
    """Of 4 classes and 40 images, 10 left are chance; Wilson's lower bound passes 1/4 at 17 (0.293)."""

    def raised(left):
        table = pd.DataFrame(
            [(0, "classes", 4.0, 40), (0, "left-in-the-full-ball", float(left), 40)],
            columns=list(probes.PROBE_COLUMNS),
        )
        return "not-at-chance" in probes.flags(table)

    assert not raised(10)
    assert not raised(15)
    assert raised(17)


def test_one_victim_is_enough_to_raise_a_flag():
    good, bad = rows_of(Rows()), rows_of(Softmax())
    table = pd.DataFrame([(v, *r) for v, found in enumerate((good, bad)) for r in found],
                         columns=list(probes.PROBE_COLUMNS))  # fmt: skip
    assert probes.flags(table) == ("softmax-output",)


@pytest.mark.parametrize(
    "inner",
    [
        lambda z: torch.autograd.grad((z**2).sum(), z),
        lambda z: torch.autograd.backward((z**2).sum()),
        lambda z: (z**2).sum().backward(),
        lambda z: torch.func.grad(lambda t: (t**2).sum())(z),
        lambda z: torch.optim.SGD([z], 0.1).step(),
    ],
)
def test_every_way_to_optimise_is_seen_without_a_tracer(inner):
    class Inner(Rows):
        def forward(self, x):
            inner(x.detach().clone().requires_grad_())
            return super().forward(x)

    before = sys.gettrace(), torch.autograd.grad, torch.autograd.backward, torch.Tensor.backward
    x, _ = problem()
    assert probes.calls_of_autograd(Inner(), x[:2]) > 0
    assert probes.calls_of_autograd(Rows(), x[:2]) == 0
    assert before == (sys.gettrace(), torch.autograd.grad, torch.autograd.backward, torch.Tensor.backward)


def test_a_grad_function_imported_by_name_is_seen():
    from torch.autograd import grad

    class ByName(Rows):
        def forward(self, x):
            z = x.detach().requires_grad_()
            grad((z**2).sum(), z)
            return super().forward(x)

    assert probes.calls_of_autograd(ByName(), problem()[0]) > 0


def test_optimising_is_seen_where_the_caller_takes_no_gradients():
    class Inner(Rows):
        def forward(self, x):
            z = x.detach().requires_grad_()
            torch.autograd.grad((z**2).sum(), z)
            return super().forward(x)

    with torch.no_grad():
        assert probes.calls_of_autograd(Inner(), problem()[0]) > 0


def test_what_was_replaced_is_put_back_after_an_error():
    class Fails(Rows):
        def forward(self, x):
            raise ValueError("no")

    before = torch.autograd.grad, torch.Tensor.backward
    with pytest.raises(ValueError, match="no"):
        probes.calls_of_autograd(Fails(), problem()[0])
    assert before == (torch.autograd.grad, torch.Tensor.backward)


def test_the_full_ball_reaches_every_image():
    assert probes.full_ball("Linf", (3, 5, 5)) == Ball("Linf", 1.0)
    ball = probes.full_ball("L2", (3, 5, 5))
    black, white = torch.zeros(1, 3, 5, 5), torch.ones(1, 3, 5, 5)
    assert torch.allclose(ball.project(white, black), white)


def test_a_difference_of_passes_is_relative_to_large_logits():
    class Noisy(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.size, self.calls = size, 0

        def forward(self, x):
            self.calls += 1
            return self.size * torch.eye(CLASSES)[:1].expand(len(x), -1) + 1e-3 * self.calls

    x, _ = problem()
    assert probes.repeated(Noisy(1.0), x)[0] == pytest.approx(1e-3, rel=1e-2)
    assert probes.repeated(Noisy(1000.0), x)[0] == pytest.approx(1e-6, rel=0.1)


@pytest.mark.parametrize("loss", [ce, margin])
def test_gradients_are_counted_in_batches_too(loss, monkeypatch):
    class Half(Rows):
        """No gradient for the odd classes."""

        def forward(self, x):
            out = super().forward(x)
            odd = (out.argmax(-1) % 2 == 1)[:, None]
            return torch.where(odd, out.detach(), out)

    x, labels = problem()
    monkeypatch.setattr(probes, "_BATCH_VALUES", 1)
    assert [s.stop - s.start for s in probes.batches(x)] == [8] * 5
    assert probes.without_gradient(Half(), x, labels, loss) == N // 2


def test_the_scorers_own_pgd_reaches_the_closed_form_of_a_linear_network():
    """Of two classes that are linear in the image, Linf PGD ends at x - eps sign(w), clipped."""
    w = torch.tensor(np.random.default_rng(0).normal(size=(2, 16)), dtype=torch.float32)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=False))
    network[1].weight.data = w
    x = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    labels = network(x).argmax(-1)
    generator = torch.Generator().manual_seed(2)
    found = probes.attacked(
        network, x, labels, Ball("Linf", 0.05), lambda s: torch.rand(s, generator=generator)
    )
    away = torch.where(labels == 0, 1.0, -1.0)[:, None] * (w[1] - w[0]).sign()
    best = network((x.flatten(1) + 0.05 * away).clamp(0, 1).view_as(x))
    assert torch.allclose(found, best, atol=1e-5)
