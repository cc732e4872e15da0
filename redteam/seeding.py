"""Seeds are paths: every stage draws from a stream named by where it stands.

Adding a stage moves no other stage's stream, and nothing seeds a global generator
except `seed_process`, the single place that does so (for libraries that draw from it).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class SeedPath:
    """A root seed and the names that lead from it to one random stream."""

    root: int
    names: tuple[str, ...] = ()

    def child(self, *names: str | int) -> SeedPath:
        """The stream one or more steps below this one."""
        return SeedPath(self.root, (*self.names, *(str(n) for n in names)))

    def integer(self) -> int:
        """A 63-bit seed that depends on the root and on every name of the path."""
        text = "\x1f".join((str(self.root), *self.names))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1

    def numpy(self) -> np.random.Generator:
        """A fresh NumPy generator (PCG64) at the start of this stream."""
        return np.random.default_rng(self.integer())

    def torch(self) -> torch.Generator:
        """A fresh CPU torch generator at the start of this stream."""
        import torch

        return torch.Generator().manual_seed(self.integer())

    def seed_process(self) -> None:
        """Seed Python's, NumPy's and torch's global generators. Called once per cell by the runner."""
        import random

        import torch

        random.seed(self.integer())
        np.random.seed(self.integer() % 2**32)
        torch.manual_seed(self.integer())

    def __str__(self) -> str:
        return "/".join((str(self.root), *self.names))
