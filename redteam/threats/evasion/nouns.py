"""What an evasion attack sees of the system under attack: fitted networks and the images to perturb.

The threat is white-box: the attacker holds the network, the test images and their true labels, and may move each
image inside a ball. Networks take (N, C, H, W) in [0, 1], with normalisation inside, and give (N, K) logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from redteam.core.context import Context
from redteam.core.types import TargetKind
from redteam.data.nouns import ImageSet
from redteam.threats.evasion.domain import DomainSplit


@dataclass(frozen=True)
class Fitted:
    """One network, in evaluation mode.

    step: updates when it was taken, -1 if it was not trained here. pseudo: (n,) int64, the pseudo-labels of the
    target's training images when the training ended, or None.
    """

    network: nn.Module
    step: int = -1
    pseudo: np.ndarray | None = None


@runtime_checkable
class Attackable(Protocol):
    """A classifier with the examples it is judged on: the target of evasion.

    Everything below depends on the cell's root seed (`ctx.seeds.root`) alone, so that the attack and the scorer
    meet the same networks and the same examples.
    """

    @property
    def kind(self) -> TargetKind:
        """`classifier`."""

    @property
    def config(self) -> Any:
        """Architecture, recipe and radius (`adapt.config.DomainConfig`)."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in label order."""

    def fit(self, ctx: Context) -> Sequence[Fitted]:
        """One network for each victim (`config.victims`), trained here or read from its stage."""

    def examples(self, ctx: Context) -> ImageSet:
        """The test images that attacks perturb, at the network's size, at most `config.examples`."""

    def split(self, ctx: Context) -> DomainSplit:
        """How the data are divided for this seed. Only the scorer may look at the target's labels."""


def to_tensor(images: np.ndarray, device: torch.device) -> torch.Tensor:
    """(N, H, W, C) uint8 to (N, C, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(device).float().div_(255)


@torch.no_grad()
def answers(network: nn.Module, x: torch.Tensor, batch: int = 500) -> torch.Tensor:
    """Logits (N, K) of images (N, C, H, W) in [0, 1]."""
    return torch.cat([network(x[start : start + batch]) for start in range(0, len(x), batch)])
