"""Distributions that change over the rounds, in steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

_CHUNK = 4096


@dataclass(frozen=True, slots=True)
class Drift:
    """kind: see `FederationConfig.drift`. every: rounds a stage lasts. angle: degrees that each stage adds."""

    kind: Literal["static", "rotation", "labels"]
    every: int
    angle: float

    def stage(self, round: int) -> int:
        """The stage of a round, both from 0."""
        return 0 if self.kind == "static" else round // self.every

    def dealing(self, stage: int) -> int:
        """Which dealing of the rows holds in a stage: a new one in each where class mixes drift."""
        return stage if self.kind == "labels" else 0

    def view(self, images: np.ndarray, stage: int) -> np.ndarray:
        """Images (N, H, W, C) uint8 as they look in a stage."""
        return rotate(images, stage * self.angle) if self.kind == "rotation" else images


@torch.inference_mode()
def rotate(images: np.ndarray, degrees: float) -> np.ndarray:
    """Turn images (N, H, W, C) uint8 about their centre, counter-clockwise as seen; bilinear, zeros come in.

    Values are rounded to the nearest grey level. Whole turns give the images unchanged.
    """
    if degrees % 360 == 0:
        return images
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    height, width = images.shape[1:3]
    # grid_sample's coordinates run from -1 to 1 along each side, whatever its length.
    theta = torch.tensor([[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]])
    out = np.empty_like(images)
    for start in range(0, len(images), _CHUNK):
        x = torch.from_numpy(images[start : start + _CHUNK].astype(np.float32)).permute(0, 3, 1, 2)
        grid = F.affine_grid(theta.expand(len(x), 2, 3), list(x.shape), align_corners=False)
        turned = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        out[start : start + _CHUNK] = turned.permute(0, 2, 3, 1).round().clamp(0, 255).to(torch.uint8).numpy()
    return out
