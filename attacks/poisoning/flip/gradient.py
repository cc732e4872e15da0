"""The label gradient of FLIP in closed form: two gradients and one forward-mode product.

Pure functions of tensors. Source: [jha2023flip], released code, for the objective; the closed form is
derived below.

Both the expert and the student take one SGD step from the same parameters theta and momentum b, so
in theta_s - theta_e everything cancels but the gradients. With momentum mu, weight decay wd and
c = 1 + mu, a = mu^2 (Nesterov) or c = 1, a = mu (plain):

    theta_s - theta_e = -eta c (g_s - g_e)         theta - theta_e = eta (c (g_e + wd theta) + a b)
    L = |theta_s - theta_e|^2 / |theta - theta_e|^2 = c^2 |r|^2 / D,   r = g_s - g_e

Cross-entropy is affine in the soft labels p, so with J the Jacobian of the student's logits

    g_s = J^T (softmax(z) - p) / B    =>    dL/dp = -(2 c^2 / (B D)) J r

which is one Jacobian-vector product: no second backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

Tensors = dict[str, torch.Tensor]
Forward = Callable[[Tensors, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Sgd:
    """The part of the optimiser that the matching loss depends on; the learning rate cancels."""

    momentum: float
    weight_decay: float
    nesterov: bool

    @property
    def factors(self) -> tuple[float, float]:
        """(c, a): the weights of the fresh gradient and of the old momentum buffer in one step."""
        mu = self.momentum
        return (1 + mu, mu * mu) if self.nesterov else (1.0, mu)


def parameter_gradient(
    forward: Forward, params: Tensors, images: torch.Tensor, targets: torch.Tensor
) -> Tensors:
    """Gradient of the mean cross-entropy by parameter. targets: (B,) labels or (B, K) probabilities."""
    leaves = {k: v.detach().requires_grad_(True) for k, v in params.items()}
    loss = F.cross_entropy(forward(leaves, images), targets)
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def matching_gradient(
    forward: Forward,
    params: Tensors,
    momenta: Tensors,
    expert: tuple[torch.Tensor, torch.Tensor],
    student: tuple[torch.Tensor, torch.Tensor],
    sgd: Sgd,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The matching loss of one batch and its gradient with respect to the soft labels.

    expert: images (B, C, H, W) and labels (B,) or (B, K). student: images (B, C, H, W) and
    probabilities p (B, K). Returns the loss, a scalar, and dL/dp, (B, K).
    """
    c, a = sgd.factors
    g_e = parameter_gradient(forward, params, *expert)
    g_s = parameter_gradient(forward, params, *student)
    with torch.no_grad():
        r = {k: g_s[k] - g_e[k] for k in params}
        step = (c * (g_e[k] + sgd.weight_decay * params[k]) + a * momenta[k] for k in params)
        d = torch.stack([s.square().sum() for s in step]).sum()
        loss = c * c * torch.stack([v.square().sum() for v in r.values()]).sum() / d
    return loss, -(2 * c * c / (len(student[0]) * d)) * logit_change(forward, params, r, student[0])


@torch.no_grad()
def logit_change(forward: Forward, params: Tensors, along: Tensors, images: torch.Tensor) -> torch.Tensor:
    """J r: the derivative of the logits (B, K) as the parameters move along r, by forward mode.

    Dual numbers straight from autograd: the wrappers of `torch.func.jvp` cost 10 to 20 % more here.
    """
    # Fused attention kernels have no forward mode.
    with sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
        duals = {k: forward_ad.make_dual(v.detach(), along[k]) for k, v in params.items()}
        tangent = forward_ad.unpack_dual(forward(duals, images)).tangent
    assert tangent is not None  # the logits depend on the parameters
    return tangent


def logit_gradient(probabilities: torch.Tensor, by_probability: torch.Tensor) -> torch.Tensor:
    """Through the softmax: dL/dl = p * (q - <p, q>) for q = dL/dp. Both (B, K)."""
    inner = (probabilities * by_probability).sum(1, keepdim=True)
    return probabilities * (by_probability - inner)


def regularizer_gradient(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Gradient of mean_i |softmax(l_i) - onehot_i|_1 with respect to the logits (n, K).

    The norm is 2 (1 - p_true), so its gradient is 2 p_true (p - onehot) / n.
    """
    p = logits.softmax(1)
    onehot = F.one_hot(labels, logits.shape[1]).to(p.dtype)
    true = p.gather(1, labels[:, None])
    return 2 * true * (p - onehot) / len(logits)
