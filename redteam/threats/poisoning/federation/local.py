"""Local training: plain SGD of every client of a round, from the same parameters, each on its own images.

Three ways with one result up to float rounding: under `vmap`, one by one, and for the small `mlp` written out
in batched products, which needs no gradient in memory. The server's update is local minus global parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.func import grad

from redteam.learn.models.convnets import Mlp
from redteam.threats.poisoning.federation.network import Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """batch_size: images of a step. lr: of plain SGD. together: all clients at once."""

    batch_size: int
    lr: float
    together: bool


def orders(passes: int, clients: int, images: int, generator: torch.Generator) -> torch.Tensor:
    """A shuffled order of each client's images for each pass: (passes, clients, images) int64.

    Earlier passes are the same however many follow.
    """
    return torch.rand(passes, clients, images, generator=generator).argsort(dim=-1)


def train(
    network: Network,
    start: torch.Tensor,
    images: torch.Tensor,
    labels: torch.Tensor,
    order: torch.Tensor,
    recipe: Recipe,
) -> torch.Tensor:
    """Updates (K, P) of K clients that train from `start` (P,) by mean cross-entropy.

    images: (K, n, channels, H, W) normalised. labels: (K, n) int64. order: (passes, K, n) int64.
    """
    if not len(images):
        return start.new_zeros(0, len(start))
    if recipe.together and isinstance(network.module, Mlp):
        return _mlp(network, network.module, start, images, labels, order, recipe)
    return generic(network, start, images, labels, order, recipe)


def generic(
    network: Network,
    start: torch.Tensor,
    images: torch.Tensor,
    labels: torch.Tensor,
    order: torch.Tensor,
    recipe: Recipe,
) -> torch.Tensor:
    """`train` for any network: one gradient function, under `vmap` or for each client in turn."""

    def loss(params: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(network.call(params, x), y)

    flat = start.repeat(len(images), 1)
    slope = torch.vmap(grad(loss)) if recipe.together else grad(loss)
    groups = [slice(None)] if recipe.together else list(range(len(images)))
    for group in groups:
        params = network.views(flat[group])
        for shuffled in order[:, group]:
            for part in torch.split(shuffled, recipe.batch_size, dim=-1):
                x, y = _taken(images[group], part), labels[group].gather(-1, part)
                for name, slopes in slope(params, x, y).items():
                    params[name].sub_(slopes, alpha=recipe.lr)
    return flat.sub_(start)


def _taken(images: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """Rows `part` (..., B) of images (..., n, ...), client by client."""
    if part.ndim == 1:
        return images[part]
    clients, n = images.shape[:2]
    flat = part + torch.arange(clients, device=part.device)[:, None] * n
    return images.flatten(0, 1).index_select(0, flat.flatten()).view(*part.shape, *images.shape[2:])


def _mlp(
    network: Network,
    module: Mlp,
    start: torch.Tensor,
    images: torch.Tensor,
    labels: torch.Tensor,
    order: torch.Tensor,
    recipe: Recipe,
) -> torch.Tensor:
    """The same for one hidden layer of ReLU, its gradients in closed form and added where they belong.

    The hidden weights are kept transposed meanwhile: the product with images is three times faster so.
    """
    clients = len(images)
    inputs = module.inputs(images.flatten(0, 1)).view(*labels.shape, -1)
    names = ("hidden.weight", "hidden.bias", "head.weight", "head.bias")
    begin = [network.views(start)[name] for name in names]
    w1, b1 = begin[0].T.contiguous().repeat(clients, 1, 1), begin[1].repeat(clients, 1)
    w2, b2 = begin[2].repeat(clients, 1, 1), begin[3].repeat(clients, 1)
    onehot = F.one_hot(labels, begin[2].shape[0]).to(inputs.dtype)
    for shuffled in order:
        for part in torch.split(shuffled, recipe.batch_size, dim=-1):
            x, y = _taken(inputs, part), _taken(onehot, part)
            hidden = torch.baddbmm(b1[:, None], x, w1).relu_()
            # Scaled by the rate at once: what follows are steps, not gradients.
            step = torch.baddbmm(b2[:, None], hidden, w2.mT).softmax(-1).sub_(y).mul_(recipe.lr / x.shape[1])
            back = torch.ops.aten.threshold_backward(torch.bmm(step, w2), hidden, 0)
            w2.baddbmm_(step.mT, hidden, alpha=-1)
            b2.sub_(step.sum(1))
            w1.baddbmm_(x.mT, back, alpha=-1)
            b1.sub_(back.sum(1))
    flat = start.new_empty(clients, len(start))
    views = network.views(flat)
    for name, after, before in zip(names, (w1.mT, b1, w2, b2), begin, strict=True):
        torch.sub(after, before, out=views[name])
    return flat
