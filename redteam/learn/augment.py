"""Random crop with padding and horizontal flip, on the device, from offsets drawn beforehand.

The same draw can be applied to two batches: label poisoning needs the triggered image and its
clean counterpart under one crop and one flip.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Draw:
    """Offsets (N, 2) int64 in [0, 2*pad] (rows, columns) and flips (N,) bool, for N images."""

    offsets: torch.Tensor
    flips: torch.Tensor

    def __getitem__(self, rows: torch.Tensor | slice) -> Draw:
        return Draw(self.offsets[rows], self.flips[rows])

    def to(self, device: torch.device) -> Draw:
        """The same draw on `device`."""
        return Draw(self.offsets.to(device), self.flips.to(device))


@dataclass(frozen=True, slots=True)
class Augmentation:
    """pad: pixels of zero padding before the random crop. flip: mirror half of the images."""

    pad: int
    flip: bool

    def draw(self, n: int, generator: torch.Generator) -> Draw:
        """Offsets and flips for `n` images from a CPU generator."""
        offsets = torch.randint(0, 2 * self.pad + 1, (n, 2), generator=generator)
        flips = torch.rand(n, generator=generator) < 0.5
        return Draw(offsets, flips if self.flip else torch.zeros_like(flips))

    def apply(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        """Crop and flip. images: (N, H, W, C) uint8. Returns the same shape and dtype."""
        if not self.pad and not self.flip:
            return images
        n, h, w, c = images.shape
        padded = torch.nn.functional.pad(images, (0, 0, self.pad, self.pad, self.pad, self.pad))
        wide = w + 2 * self.pad
        columns = torch.arange(w, device=images.device).expand(n, w)
        columns = torch.where(draw.flips[:, None], w - 1 - columns, columns) + draw.offsets[:, 1:]
        rows = torch.arange(h, device=images.device) + draw.offsets[:, :1]
        base = torch.arange(n, device=images.device)[:, None, None] * (h + 2 * self.pad) * wide
        flat = base + rows[:, :, None] * wide + columns[:, None, :]
        return padded.reshape(-1, c)[flat.reshape(-1)].view(n, h, w, c)
