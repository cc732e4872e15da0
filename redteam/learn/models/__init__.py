"""Image classifiers by name. `build` gives an initialised `torch.nn.Module`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redteam.core.errors import ConfigError, UnknownNameError
from redteam.core.seeding import SeedPath

if TYPE_CHECKING:
    from torch import nn

NAMES: dict[str, str] = {
    "preact-resnet32": "pre-activation ResNet-32 of FLIP (464,154 parameters at 3x32x32, 10 classes)",
    "preact-resnet20": "the same with 3 blocks a stage",
    "preact-resnet8": "the same with 1 block a stage",
    "preact-resnet8-s2": "the same, stem of stride 2: for small images on a CPU",
    "resnet18": "CIFAR ResNet-18: 3x3 stem, no max-pool",
    "vgg19-bn": "VGG-19 with batch normalisation, 32-pixel head",
    "vit": "small vision transformer: patch 4, 6 blocks of width 192, 3 heads",
    "cnn": "three convolutions with batch normalisation, one linear layer",
    "mlp": "images averaged down to 14 pixels a side, 64 hidden units: for federations on a CPU",
    "convnet": "two convolutions, a max-pool and 128 hidden units; no batch normalisation, no dropout",
    "digit-cnn": "the digits' network of DART: four convolutions, group normalisation, 128 features",
    "digit-cnn-small": "three convolutions with group normalisation, 64 features: for 16 pixels on a CPU",
}


def build(name: str, *, classes: int, shape: tuple[int, int, int], seeds: SeedPath) -> nn.Module:
    """A freshly initialised model. shape: (H, W, C) of its images.

    Raises:
        UnknownNameError: no such model. ConfigError: images it cannot take.
    """
    if name not in NAMES:
        raise UnknownNameError("model", name, NAMES)
    height, width, channels = shape
    if min(height, width) < 8:
        raise ConfigError(f"model '{name}' needs images of at least 8x8 pixels, got {height}x{width}")
    from redteam.learn.models import convnets, digits, preact, vit

    with seeds.as_global():
        if name.startswith("preact-resnet"):
            depth, _, stem = name.removeprefix("preact-resnet").partition("-s")
            blocks = (int(depth) - 2) // 6
            return preact.PreactResNet(blocks, channels=channels, classes=classes, stem_stride=int(stem or 1))
        if name in ("vit", "mlp", "convnet"):
            sized = {"vit": vit.VisionTransformer, "mlp": convnets.Mlp, "convnet": convnets.convnet}
            return sized[name](height, width, channels=channels, classes=classes)
        makers = {
            "resnet18": convnets.ResNet18, "vgg19-bn": convnets.vgg19_bn, "cnn": convnets.small_cnn,
            "digit-cnn": digits.digit_cnn, "digit-cnn-small": digits.digit_cnn_small,
        }  # fmt: skip
        return makers[name](channels=channels, classes=classes)
