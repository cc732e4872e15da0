"""What an update costs, counted at the network: forwards, gradients of images, gradients of parameters.

One unit is one forward of one domain's batch; a gradient of inputs counts one, a gradient of parameters one more.
They are counted at a layer behind another, so that gradients of parameters need those of its inputs, as in most
layers of a deep network.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn

from redteam.threats.evasion.adapt.networks import Classifier, Networks, critic
from tests.bench.test_dart_step import released_critic, released_inner, released_outer
from tests.defenses.evasion.updates import CLASSES, FEATURES, algorithm, make_step, update

COUNTS: Counter[str] = Counter()


class _Counted(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        COUNTS["forward"] += len(x)
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        for_x = for_weight = None
        if ctx.needs_input_grad[0]:
            COUNTS["inputs"] += len(x)
            for_x = gradient @ weight
        if ctx.needs_input_grad[1]:
            COUNTS["parameters"] += len(x)
            for_weight = gradient.T @ x
        return for_x, for_weight


class Counted(nn.Module):
    """A linear layer that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(FEATURES, 7, dtype=torch.float64) / 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Counted.apply(x, self.weight)


def counting_step(batch: int = 6):
    """A step whose groups count, with 5 inner steps. A predictor beside them counts, too."""

    def network() -> nn.Module:
        body = nn.Sequential(nn.Flatten(), nn.Linear(18, 7), nn.Tanh(), Counted())
        return Classifier(body, nn.Linear(FEATURES, CLASSES)).double()

    judge = critic(FEATURES, 5, 2).double()
    nets = Networks({"model": [network()], "critic": [judge], "teacher": [network()]})
    COUNTS.clear()
    return replace(make_step((0,), batch=batch), nets=nets)


def units(batch: int = 6) -> dict[str, float]:
    return {name: COUNTS[name] / batch for name in ("forward", "inputs", "parameters")}


@pytest.mark.parametrize(
    ("name", "values", "forward", "inputs", "parameters"),
    [
        # Labels 1, source features 1, five times x_t' 5 + 5, then both batches 2 + 2 + 2.
        ("dart", {}, 9, 7, 2),
        ("dart", {"divergence": "mmd"}, 9, 7, 2),
        ("dart", {"divergence": "coral"}, 9, 7, 2),
        # Without a divergence no source features are needed by the inner steps.
        ("dart", {"weight": 0.0}, 8, 7, 2),
        ("dart", {"source": "adversarial"}, 14, 12, 2),
        # KL needs the answers to the clean source.
        ("dart", {"source": "kl"}, 15, 12, 2),
        ("dann", {}, 2, 2, 2),
        ("at-source", {}, 6, 6, 1),
        ("at-target", {}, 6, 6, 1),
        ("trades-source", {}, 8, 7, 2),
        ("trades-target", {}, 8, 7, 2),
        ("at-uda", {}, 7, 7, 2),
        ("artuda", {}, 9, 8, 3),
        # Teacher's labels 1, inner 5 + 5, student 1 + 1 + 1 and twice on the source, teacher twice 1 + 1 + 1.
        ("srouda", {}, 11, 8, 3),
    ],
)  # fmt: skip
def test_units_of_one_update(name, values, forward, inputs, parameters):
    """DART on the clean source costs 18; with one forward for its pseudo-labels, 19."""
    step = counting_step()
    update(algorithm(name, **values), replace(step, critic_steps=3), lr=0.0)
    assert units() == {"forward": forward, "inputs": inputs, "parameters": parameters}


@pytest.mark.parametrize(("again", "expected"), [(False, 41), (True, 57)])
def test_units_of_the_released_form(again, expected):
    """41 and 57 without the forward of the predictor of pseudo-labels, which is not counted here."""
    step = counting_step()
    moved = released_inner(step, again=again)
    before = sum(units().values())
    released_outer(step, moved)
    assert sum(units().values()) == expected
    released_critic(step, moved)
    assert sum(units().values()) == expected + expected - before
