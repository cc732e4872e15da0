"""A network as a function of one flat vector: what clients train and servers add up."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn
from torch.func import functional_call

from redteam.core.errors import ConfigError
from redteam.learn.features import head

_CHUNK = 4096


@dataclass(frozen=True)
class Network:
    """A module whose parameters are a flat vector (P,), in the order of `named_parameters`. It has no other state."""

    module: nn.Module

    def __post_init__(self) -> None:
        refuse_state(self.module)

    @cached_property
    def shapes(self) -> dict[str, torch.Size]:
        """Shapes of the parameters by name."""
        return {name: p.shape for name, p in self.module.named_parameters()}

    @cached_property
    def size(self) -> int:
        """Number of parameters P."""
        return sum(shape.numel() for shape in self.shapes.values())

    def flat(self) -> torch.Tensor:
        """A copy of the module's own parameters, (P,)."""
        return torch.cat([p.detach().reshape(-1) for p in self.module.parameters()])

    def views(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Parameters by name as views of (..., P): writing to them writes to `flat`."""
        out, start = {}, 0
        for name, shape in self.shapes.items():
            part = flat[..., start : start + shape.numel()]
            out[name] = part.view(*flat.shape[:-1], *shape)
            start += shape.numel()
        return out

    def call(self, params: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """Logits (B, C) of normalised images x (B, channels, H, W) under parameters by name."""
        logits: torch.Tensor = functional_call(self.module, params, (x,))
        return logits

    @torch.no_grad()
    def logits(self, params: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, C) under `params` (P,)."""
        views = self.views(params)
        return torch.cat([self.call(views, part) for part in torch.split(x, _CHUNK)])

    @torch.no_grad()
    def features(self, params: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """What the last linear layer is given: (N, D) under `params` (P,)."""
        views, found = self.views(params), []

        def keep(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            found.append(inputs[0].flatten(1))

        handle = head(self.module).register_forward_pre_hook(keep)
        try:
            for part in torch.split(x, _CHUNK):
                self.call(views, part)
        finally:
            handle.remove()
        return torch.cat(found)

    def with_parameters(self, params: torch.Tensor) -> nn.Module:
        """A module of its own with `params` (P,), in evaluation mode."""
        module = copy.deepcopy(self.module)
        module.load_state_dict({name: p.clone() for name, p in self.views(params).items()})
        return module.eval()


def refuse_state(module: nn.Module) -> None:
    """Refuse networks that are more than their parameters, or that draw at random.

    Raises:
        ConfigError: batch normalisation, other buffers, or dropout.
    """
    for name, part in module.named_modules():
        kind = type(part).__name__
        dropout = isinstance(part, nn.Dropout) and part.p > 0
        if dropout or any(True for _ in part.buffers(recurse=False)):
            raise ConfigError(
                f"model: expected a network that is its parameters alone, found a {kind} in it ({name}); a "
                "federation averages parameters, not running statistics. Use mlp or convnet"
            )
