"""The digits' networks: the cost the paper's has, and that images of a batch do not touch each other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from redteam.core.seeding import SeedPath
from redteam.learn import models


def macs(model: nn.Module, image: tuple[int, int, int]) -> int:
    """Multiplications of convolutions and linear layers, counted at the layers as they run on one image."""
    total = 0

    def count(module: nn.Module, inputs: tuple[torch.Tensor], out: torch.Tensor) -> None:
        nonlocal total
        weight = module.weight
        total += weight.numel() * (out.shape[2] * out.shape[3] if isinstance(module, nn.Conv2d) else 1)

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.inference_mode():
        model(torch.zeros(1, *image))
    return total


@pytest.mark.parametrize(
    ("name", "size", "cost", "features", "parameters"),
    [
        # 27*64*32^2 + 576*128*16^2 + 2 * 1152*128*16^2 + 128*10: the 96.1 M of the paper's network.
        ("digit-cnn", 32, 96_142_592, 128, 373_002),
        # 27*16*8^2 + 144*32*4^2 + 288*64*4^2 + 64*10
        ("digit-cnn-small", 16, 396_928, 64, 24_458),
    ],
)
def test_cost_and_parts(name, size, cost, features, parameters):
    model = models.build(name, classes=10, shape=(size, size, 3), seeds=SeedPath(0))
    assert macs(model, (3, size, size)) == cost
    assert sum(p.numel() for p in model.parameters()) == parameters
    x = torch.rand(5, 3, size, size)
    with torch.inference_mode():
        assert model.body(x).shape == (5, features)
        assert torch.equal(model.head(model.body(x)), model(x))


@pytest.mark.parametrize("name", ["digit-cnn", "digit-cnn-small"])
def test_images_do_not_touch_each_other(name):
    """Also in training mode: there is no batch normalisation."""
    model = models.build(name, classes=4, shape=(8, 8, 1), seeds=SeedPath(1)).double().train()
    x = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    with torch.inference_mode():
        alone = torch.cat([model(x[i : i + 1]) for i in range(3)])
        assert torch.allclose(model(x), alone, atol=1e-12)
