"""A small vision transformer for images of 8 to 64 pixels."""

from __future__ import annotations

import math

import torch
from torch import nn
from torchvision.models import VisionTransformer as TorchvisionViT


class VisionTransformer(nn.Module):
    """torchvision's ViT with patches of 4 pixels (8 from 64 pixels on), 6 blocks, width 192, 3 heads.

    Images whose sides are no multiple of the patch, or not square, are padded with zeros.
    Source: [dosovitskiy2021vit].
    """

    def __init__(self, height: int, width: int, *, channels: int, classes: int) -> None:
        super().__init__()
        patch = 8 if min(height, width) >= 64 else 4
        self.side = math.ceil(max(height, width) / patch) * patch
        self.net = TorchvisionViT(self.side, patch, 6, 3, 192, 384, num_classes=classes)
        if channels != 3:
            self.net.conv_proj = nn.Conv2d(channels, 192, patch, patch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (N, channels, H, W) normalised. Returns (N, classes) logits."""
        down, across = self.side - x.shape[2], self.side - x.shape[3]
        if down or across:
            x = nn.functional.pad(x, (0, across, 0, down))
        logits: torch.Tensor = self.net(x)
        return logits
