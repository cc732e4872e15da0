"""The networks of one training: replicas side by side, each group with its own parameters.

Every tensor has a leading replica axis R. One replica runs directly, several under one `vmap`; batch
normalisation stays frozen and dropout off, so that replicas and examples do not touch each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import nn
from torch.func import functional_call, stack_module_state

Tensors = dict[str, torch.Tensor]


class Classifier(nn.Module):
    """A body that gives features (B, D) and a linear head that gives logits (B, K)."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (B, C, H, W) in [0, 1]. Returns (B, K)."""
        logits: torch.Tensor = self.head(self.body(x))
        return logits


def critic(features: int, width: int, layers: int) -> nn.Module:
    """A domain critic: an MLP from features (B, D) to one logit (B, 1), above 0 for the source.

    The released discriminator has two outputs [wang2024dart]; one logit is the same family of functions.
    """
    sizes = [features, *[width] * (layers - 1)]
    hidden = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(sizes[-1], 1))


class Networks:
    """Stacked parameters of each group: `model` and, where an algorithm asks for them, `critic` and `teacher`."""

    def __init__(self, groups: Mapping[str, Sequence[nn.Module]]) -> None:
        self._templates: dict[str, nn.Module] = {}
        self.params: dict[str, Tensors] = {}
        self._buffers: dict[str, Tensors] = {}
        self._frozen = False
        for name, modules in groups.items():
            params, buffers = stack_module_state([m.eval() for m in modules])  # type: ignore[arg-type]
            self._templates[name] = modules[0]
            self.params[name] = {k: p.detach().requires_grad_() for k, p in params.items()}
            self._buffers[name] = buffers
            self.replicas = len(modules)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Within: gradients are taken with respect to inputs alone, which costs less."""
        before, self._frozen = self._frozen, True
        try:
            yield
        finally:
            self._frozen = before

    def _call(self, group: str, part: str, x: torch.Tensor) -> torch.Tensor:
        template = self._templates[group]
        module = getattr(template, part) if part else template
        prefix = f"{part}." if part else ""

        def own(tensors: Tensors) -> Tensors:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        params, buffers = own(self.params[group]), own(self._buffers[group])
        if self._frozen:
            params = {k: p.detach() for k, p in params.items()}
        if self.replicas == 1:
            only = [{k: v[0] for k, v in tensors.items()} for tensors in (params, buffers)]
            alone: torch.Tensor = functional_call(module, (only[0], only[1]), (x[0],))
            return alone.unsqueeze(0)

        def one(p: Tensors, b: Tensors, batch: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = functional_call(module, (p, b), (batch,))
            return out

        out: torch.Tensor = torch.vmap(one)(params, buffers, x)
        return out

    def features(self, x: torch.Tensor, of: str = "model") -> torch.Tensor:
        """(R, B, C, H, W) in [0, 1] to (R, B, D)."""
        return self._call(of, "body", x)

    def head(self, z: torch.Tensor, of: str = "model") -> torch.Tensor:
        """(R, B, D) to (R, B, K)."""
        return self._call(of, "head", z)

    def logits(self, x: torch.Tensor, of: str = "model") -> torch.Tensor:
        """(R, B, C, H, W) in [0, 1] to (R, B, K)."""
        return self._call(of, "", x)

    def critic(self, z: torch.Tensor) -> torch.Tensor:
        """(R, B, D) to (R, B): above 0 where the features look like the source's."""
        return self._call("critic", "", z)[..., 0]

    def state(self, replica: int, of: str = "model") -> Tensors:
        """A copy of one replica's parameters and buffers."""
        both = {**self.params[of], **self._buffers[of]}
        return {k: v[replica].detach().clone() for k, v in both.items()}

    def snapshot(self, of: str = "model") -> Networks:
        """A frozen copy of one group, called `model`, such as a predictor of pseudo-labels."""
        copy = object.__new__(Networks)
        copy._templates = {"model": self._templates[of]}
        copy.params = {"model": {k: p.detach().clone() for k, p in self.params[of].items()}}
        copy._buffers = {"model": self._buffers[of]}
        copy.replicas, copy._frozen = self.replicas, True
        return copy
