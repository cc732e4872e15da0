"""Pre-activation ResNets for small images, as FLIP trains them.

LeakyReLU 0.1, shortcut by average pooling and zero-padded channels, no activation after the
addition, a last batch normalisation, Kaiming-normal convolutions.

Source: [jha2023flip], released code; [he2016identity] for pre-activation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class PreactBlock(nn.Module):
    """BN, activation, conv, BN, activation, conv, plus the shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.stride, self.extra = stride, outputs - inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (N, inputs, H, W). Returns (N, outputs, ceil(H / stride), ceil(W / stride))."""
        h = self.conv1(F.leaky_relu(self.bn1(x), 0.1))
        h = self.conv2(F.leaky_relu(self.bn2(h), 0.1))
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride, ceil_mode=True)
        if self.extra:
            x = F.pad(x, (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))
        out: torch.Tensor = h + x
        return out


class PreactResNet(nn.Module):
    """Three stages of `blocks` blocks with 16, 32 and 64 channels; depth 6*blocks + 2."""

    def __init__(self, blocks: int, *, channels: int, classes: int, stem_stride: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 16, 3, stem_stride, 1, bias=False)
        layers, width = [], 16
        for stage, outputs in enumerate((16, 32, 64)):
            for index in range(blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                layers.append(PreactBlock(width, outputs, stride))
                width = outputs
        self.blocks = nn.Sequential(*layers)
        self.bn = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (N, channels, H, W) normalised. Returns (N, classes) logits."""
        h = F.leaky_relu(self.bn(self.blocks(self.stem(x))), 0.1)
        logits: torch.Tensor = self.head(h.mean((2, 3)))
        return logits
