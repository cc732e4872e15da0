"""How far apart two batches of features are: what adaptation makes small, and DART's inner step makes large.

Features are (R, B, D), with one divergence (R,) for each replica; all are differentiable in both batches, which
may differ in their number of rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

# Widths of the kernel, exp(-gamma |a - b|^2), of which MMD takes the sum.
GAMMAS = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)


def critic_loss(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of a domain critic's logits (R, B) each, source labelled 1 and target 0; mean over both, (R,).

    DANN's divergence is its negative. Where the critic is the best possible, log p_s / p_t, it is ln 2 minus the
    Jensen-Shannon divergence of the two distributions. Source: [ganin2016dann].
    """
    return (F.softplus(-source).mean(-1) + F.softplus(target).mean(-1)) / 2


def mmd(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Squared maximum mean discrepancy of features (R, B, D), (R,): at least 0, and 0 for a batch and itself.

    The biased estimate, pairs of a row with itself included, with the sum of Gaussian kernels over GAMMAS, as in
    DomainBed. Distances are taken directly: expanded squares lose the digits that the narrowest kernel needs.
    """

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        squares = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
        parts = [torch.exp(-gamma * squares) for gamma in GAMMAS]
        return torch.stack(parts).sum(0).mean((-2, -1))

    return kernel(source, source) + kernel(target, target) - 2 * kernel(source, target)


def coral(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Difference of the first two moments of features (R, B, D), (R,): at least 0, and 0 for a batch and itself.

    Mean over D of the squared difference of means plus mean over D x D of that of covariances (over B - 1), as in
    DomainBed; the two terms scale as the second and the fourth power of the features.
    """

    def moments(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = z.mean(-2, keepdim=True)
        centred = z - mean
        return mean, centred.mT @ centred / (z.shape[-2] - 1)

    (mean_s, cov_s), (mean_t, cov_t) = moments(source), moments(target)
    return (mean_s - mean_t).square().mean((-2, -1)) + (cov_s - cov_t).square().mean((-2, -1))
