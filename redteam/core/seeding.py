"""Seeds are paths: every stage draws from a stream named by where it stands.

Adding a stage moves no other stage's stream, and nothing seeds a global generator
except `as_global`, which puts it back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
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
        import numpy as np

        return np.random.default_rng(self.integer())

    def torch(self) -> torch.Generator:
        """A fresh CPU torch generator at the start of this stream."""
        import torch

        return torch.Generator().manual_seed(self.integer())

    @contextmanager
    def as_global(self) -> Iterator[None]:
        """Run a block with torch's global generator at this stream, and put it back afterwards.

        For library code that draws from the global generator, such as weight initialisation.
        """
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.integer())
            yield

    def __str__(self) -> str:
        return "/".join((str(self.root), *self.names))
