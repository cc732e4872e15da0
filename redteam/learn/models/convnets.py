"""Post-activation ResNet-18, VGG-19-bn, small CNNs and an MLP, sized for images of 8 to 64 pixels."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
import torchvision
from torch import nn


class BasicBlock(nn.Module):
    """conv, BN, ReLU, conv, BN, plus a (projected) shortcut, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (N, inputs, H, W)."""
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(h)) + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 with a 3x3 stem of stride 1 and no max-pool, the usual form for CIFAR.

    Source: [he2016deep]; 11,173,962 parameters at 3 channels and 10 classes.
    """

    def __init__(self, *, channels: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        layers, width = [], 64
        for stage, outputs in enumerate((64, 128, 256, 512)):
            for index in range(2):
                layers.append(BasicBlock(width, outputs, 2 if stage > 0 and index == 0 else 1))
                width = outputs
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (N, channels, H, W) normalised. Returns (N, classes) logits."""
        logits: torch.Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return logits


def vgg19_bn(*, channels: int, classes: int) -> nn.Module:
    """torchvision's VGG-19-bn features with global average pooling and one linear layer.

    Source: [simonyan2015vgg]. torchvision's head is made for 224 pixels (120M weights); for images
    of 32 pixels a linear layer on the 512 last channels is customary. Its five max-pools want at
    least 32 pixels, so smaller images are padded with zeros up to 32.
    """
    features = torchvision.models.vgg19_bn(weights=None).features
    if channels != 3:
        features[0] = nn.Conv2d(channels, 64, 3, padding=1)
    return nn.Sequential(PadTo(32), features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))


class PadTo(nn.Module):
    """Pad images with zeros, evenly, to at least `size` pixels a side."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (N, C, H, W)."""
        down, across = max(0, self.size - x.shape[2]), max(0, self.size - x.shape[3])
        if not down and not across:
            return x
        return F.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2))


def small_cnn(*, channels: int, classes: int) -> nn.Module:
    """Three 3x3 convolutions (32, 64, 128; strides 1, 2, 2) with batch normalisation, and a head."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((channels, 32, 1), (32, 64, 2), (64, 128, 2)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, classes))


class Mlp(nn.Module):
    """Images averaged down by a whole factor to at most 14 pixels a side, one hidden layer of 64, ReLU, a head.

    13,258 parameters at 14x14x1 and 10 classes.
    """

    SIDE, WIDTH = 14, 64

    def __init__(self, height: int, width: int, *, channels: int, classes: int) -> None:
        super().__init__()
        self.factor = math.ceil(max(height, width) / self.SIDE)
        pixels = math.ceil(height / self.factor) * math.ceil(width / self.factor)
        self.hidden = nn.Linear(channels * pixels, self.WIDTH)
        self.head = nn.Linear(self.WIDTH, classes)

    def inputs(self, x: torch.Tensor) -> torch.Tensor:
        """What the hidden layer sees: (N, channels, H, W) to (N, D). Windows at the edge average what they hold."""
        if self.factor > 1:
            x = F.avg_pool2d(x, self.factor, ceil_mode=True)
        return x.flatten(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (N, channels, H, W) normalised. Returns (N, classes) logits."""
        logits: torch.Tensor = self.head(F.relu(self.hidden(self.inputs(x))))
        return logits


def convnet(height: int, width: int, *, channels: int, classes: int) -> nn.Module:
    """conv32-conv64-pool-128-head, 3x3 kernels without padding.

    Source: the CNN of [wang2022shadow]'s released code, without its dropout; 1,199,882 parameters at 28x28x1.
    """
    pixels = ((height - 4) // 2) * ((width - 4) // 2)
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(64 * pixels, 128), nn.ReLU(), nn.Linear(128, classes),
    )  # fmt: skip
