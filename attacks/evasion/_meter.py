"""Counting what an attack asks of a network: images put through it and gradients taken, for each example."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from redteam.core.context import Limits
from redteam.core.errors import ConfigError


class Meter(nn.Module):
    """A network that counts, for each of the n examples of a chunk, its images put through and gradients taken.

    rows: (k,) int64, which examples are asked at present; an attempt that leaves some aside sets it. A call with
    another number of images is spread evenly over them, so that the sums are always exact. While `counting` is
    False nothing is counted, and the attempt adds to `forwards` itself. nan_logits, bad_gradients: whether
    any NaN, and any gradient that is not finite, came for images that are numbers.
    """

    def __init__(self, network: nn.Module, n: int, limits: Limits | None = None) -> None:
        super().__init__()
        self._network, self._limits = network, limits or Limits()
        self.forwards, self.backwards = torch.zeros(2, n, dtype=torch.int64)
        self.rows = torch.arange(n)
        self.counting = True
        self.nan_logits: torch.Tensor | bool = False
        self.bad_gradients: torch.Tensor | bool = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (k, C, H, W) in [0, 1]. Returns (k, K) logits.

        Raises:
            ConfigError: a gradient is wanted and the network gives none.
            LimitReachedError: the time is up.
        """
        self._limits.check_time()
        self._add(self.forwards, len(x), self.rows)
        logits: torch.Tensor = self._network(x)
        # An attack may make NaN images of its own, as FAB does where gradients vanish.
        numbers = x.detach().sum().isfinite()
        self.nan_logits = self.nan_logits | (logits.detach().isnan().any() & numbers)
        if x.requires_grad and torch.is_grad_enabled():
            if not logits.requires_grad:
                raise ConfigError(
                    "the network gives logits without a gradient with respect to its images, which this attack "
                    "needs; attack it with square, or leave out what cuts the gradient (no_grad, rounding)"
                )
            self._watch(x, logits, numbers)
        return logits

    def _watch(self, x: torch.Tensor, logits: torch.Tensor, numbers: torch.Tensor) -> None:
        rows = self.rows

        def arrived(gradient: torch.Tensor) -> None:
            self.bad_gradients = self.bad_gradients | (~gradient.sum().isfinite() & numbers)

        logits.register_hook(lambda g: self._add(self.backwards, len(g), rows))  # type: ignore[no-untyped-call]
        x.register_hook(arrived)  # type: ignore[no-untyped-call]

    def _add(self, counts: torch.Tensor, images: int, rows: torch.Tensor) -> None:
        if self.counting and len(rows):
            each, rest = divmod(images, len(rows))
            counts[rows] += each
            counts[rows[:rest]] += 1


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Within: no gradient is taken with respect to parameters, which costs less."""
    learnt = [p for p in network.parameters() if p.requires_grad]
    try:
        for p in learnt:
            p.requires_grad_(False)
        yield
    finally:
        for p in learnt:
            p.requires_grad_(True)
