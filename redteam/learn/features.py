"""Representations inside a network: what filters of training data look at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from redteam.core.errors import ConfigError
from redteam.data.nouns import DatasetFacts
from redteam.learn.nouns import Layer
from redteam.learn.train import normalise


def head(model: nn.Module) -> nn.Linear:
    """The last linear layer of a classifier, in the order of its modules.

    Raises:
        ConfigError: it has none.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if not layers:
        raise ConfigError(
            "representations: expected a classifier that ends in a linear layer, found none in it"
        )
    return layers[-1]


@contextmanager
def _watched(model: nn.Module, layer: Layer, into: list[torch.Tensor]) -> Iterator[None]:
    """While open, each forward pass leaves its representation (N, D) as the last entry of `into`."""

    def penultimate(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        into[:] = [inputs[0].flatten(1)]

    def spatial(_: nn.Module, __: object, output: object) -> None:
        if isinstance(output, torch.Tensor) and output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
            into[:] = [output.flatten(1)]

    if layer == "penultimate":
        handles = [head(model).register_forward_pre_hook(penultimate)]
    else:
        handles = [m.register_forward_hook(spatial) for m in model.modules() if not list(m.children())]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def features(
    model: nn.Module,
    images: np.ndarray,
    facts: DatasetFacts,
    device: torch.device,
    layer: Layer,
    batch: int = 2048,
) -> np.ndarray:
    """Representations (N, D) float32 of images (N, H, W, C) uint8, from a model in evaluation mode.

    layer: `penultimate`, the input of the last linear layer; `spatial`, the output of the last layer that
    keeps height and width, flattened (the 64x8x8 of [hayase2021spectre] on a ResNet-32 at 32 pixels).

    Raises:
        ConfigError: the model has no such layer.
    """
    found: list[torch.Tensor] = []
    parts = []
    with _watched(model, layer, found):
        for start in range(0, max(len(images), 1), batch):
            x = torch.from_numpy(np.ascontiguousarray(images[start : start + batch])).to(device)
            model(normalise(x, facts))
            if not found:
                raise ConfigError(f"representations: the model has no {layer} layer; ask for the other one")
            parts.append(found[0].float().cpu().numpy())
    return np.concatenate(parts)
