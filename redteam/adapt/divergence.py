"""How far apart two batches of features are: what adaptation makes small, and DART's inner step makes large.

Features are (R, B, D), with one divergence (R,) for each replica; all are differentiable in both batches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def critic_loss(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of a domain critic's logits (R, B) each, source labelled 1 and target 0; mean over both, (R,).

    DANN's divergence is its negative. Source: [ganin2016dann].
    """
    return (F.softplus(-source).mean(-1) + F.softplus(target).mean(-1)) / 2
