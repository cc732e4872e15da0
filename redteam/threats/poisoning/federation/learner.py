"""The clients of one round, as the server may ask them; malicious ones answer by their conduct."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from redteam.threats.poisoning.federation.conduct import Conduct, honest_norm
from redteam.threats.poisoning.federation.holdings import Share
from redteam.threats.poisoning.federation.local import Recipe, orders, train
from redteam.threats.poisoning.federation.network import Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What all rounds share. passes: of an honest client over its images."""

    network: Network
    recipe: Recipe
    passes: int
    conduct: Conduct
    classes: int


class RoundLearner:
    """A `nouns.Learner`. Local training takes the same order of images each time it is asked for.

    trained: what clients train on. shown: what they answer questions from. acting: (K,) bool, malicious clients
    that act. generator: draws the orders. An update is bounded by the honest ones of the same training or, where
    there are none, of the one before. `images_trained` counts images put through training steps so far.
    """

    def __init__(
        self, setup: Setup, trained: Share, shown: Share, acting: torch.Tensor, generator: torch.Generator
    ) -> None:
        self._setup, self._trained, self._shown, self._acting = setup, trained, shown, acting
        clients, n = trained.labels.shape
        device = trained.labels.device
        self._order = orders(setup.passes, clients, n, generator).to(device)
        more = setup.passes * (setup.conduct.epochs - 1)
        own = self._order[:, acting]
        self._own_order = torch.cat([own, orders(more, own.shape[1], n, generator).to(device)])
        self._median: torch.Tensor | None = None
        self.images_trained = 0

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self._setup.classes

    def updates(self, params: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """(K, P) updates from `params` (P,), conduct included; rows that were not chosen are zero."""
        conduct, bad = self._setup.conduct, chosen & self._acting
        if conduct.epochs == 1:
            out = self._group(params, chosen, self._order)
        else:
            out = self._group(params, chosen & ~self._acting, self._order)
            if bool(bad.any()):
                out[bad] = self._run(params, bad, self._own_order[:, bad[self._acting]])
        if conduct.bound is not None:
            found = honest_norm(out[chosen & ~self._acting])
            self._median = found if found is not None else self._median
        return conduct.apply(out, bad, self._median)

    def _group(self, params: torch.Tensor, chosen: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        if bool(chosen.all()):
            return self._run(params, slice(None), order)
        out = params.new_zeros(len(chosen), len(params))
        out[chosen] = self._run(params, chosen, order[:, chosen])
        return out

    def _run(self, params: torch.Tensor, who: torch.Tensor | slice, order: torch.Tensor) -> torch.Tensor:
        data = self._trained
        self.images_trained += order.numel()
        return train(
            self._setup.network, params, data.images[who], data.labels[who], order, self._setup.recipe
        )

    def train(self, params: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Local training from other parameters (P,) by the `chosen`, (K,) bool.

        Returns (K, P) updates; rows of clients that were not chosen, or whose update was not finite, are zero.
        """
        out = self.updates(params, chosen)
        out[not_finite(out)] = 0
        return out

    def represent(self, params: torch.Tensor, label: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean input of the last linear layer over each client's samples that it labels `label`.

        Returns (K, D) float32 and the samples it is the mean of, (K,) int64; rows without samples are NaN.
        """
        mask = self._shown.labels == label
        counts = mask.sum(1)
        features = self._setup.network.features(params, self._of(mask))
        sums = features.new_zeros(len(counts), features.shape[1])
        sums.index_add_(0, mask.nonzero()[:, 0], features)
        return sums / counts[:, None], counts

    def accuracy(self, params: torch.Tensor, label: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each client's own samples with `label`: how many the model gets right, and how many there are, (K,)."""
        mask = self._shown.labels == label
        said = self._setup.network.logits(params, self._of(mask)).argmax(1)
        right = torch.zeros_like(mask)
        right[mask] = said == label
        return right.sum(1), mask.sum(1)

    def _of(self, mask: torch.Tensor) -> torch.Tensor:
        return self._shown.images.flatten(0, 1)[mask.flatten()]


def not_finite(updates: torch.Tensor) -> torch.Tensor:
    """(K,) bool, rows of (K, P) that hold NaN or infinity."""
    # A row of finite numbers may overflow in its sum, but no other row has a finite one.
    suspects = ~updates.sum(1).isfinite()
    if bool(suspects.any()):
        suspects[suspects.clone()] = ~updates[suspects].isfinite().all(1)
    return suspects
