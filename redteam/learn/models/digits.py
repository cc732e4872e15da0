"""Digit classifiers for robustness under domain shift: a body that gives features and a linear head.

No batch normalisation and no dropout, so that images of one batch do not touch each other.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn


class DigitCnn(nn.Module):
    """3x3 convolutions, each followed by ReLU and group normalisation, a global average pool and a linear head.

    body: (N, C, H, W) to features (N, D). head: features to logits (N, K). Images are at least 8 pixels a side.
    """

    def __init__(
        self, widths: tuple[int, ...], strides: tuple[int, ...], *, groups: int, channels: int, classes: int
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for (inputs, outputs), stride in zip(pairwise((channels, *widths)), strides, strict=True):
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.ReLU(), nn.GroupNorm(groups, outputs),
            ]  # fmt: skip
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (N, channels, H, W). Returns (N, classes) logits."""
        logits: torch.Tensor = self.head(self.body(x))
        return logits


def digit_cnn(*, channels: int, classes: int) -> DigitCnn:
    """Widths 64, 128, 128, 128, the second convolution of stride 2, 8 groups: 96.1 M MAC at 3x32x32.

    Source: [wang2024dart], released code (read), which takes DomainBed's `MNIST_CNN`: normalisation stands after
    the ReLU.
    """
    return DigitCnn((64, 128, 128, 128), (1, 2, 1, 1), groups=8, channels=channels, classes=classes)


def digit_cnn_small(*, channels: int, classes: int) -> DigitCnn:
    """Widths 16, 32, 64, strides 2, 2, 1, 4 groups: 0.4 M MAC at 3x16x16, for a CPU."""
    return DigitCnn((16, 32, 64), (2, 2, 1), groups=4, channels=channels, classes=classes)
