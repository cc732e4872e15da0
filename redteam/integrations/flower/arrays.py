"""Flower's named arrays as one flat vector, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord  # type: ignore[import-not-found]

from redteam.core.errors import ConfigError


@dataclass(frozen=True)
class Layout:
    """Which part of a flat vector is which array. fixed: arrays that are not trained, as they were sent."""

    shapes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, np.dtype[Any]]
    fixed: Mapping[str, Any]

    @classmethod
    def of(cls, arrays: Any) -> Layout:
        """The layout of an `ArrayRecord`.

        Raises:
            ConfigError: it has nothing to train.
        """
        read = {name: array.numpy() for name, array in arrays.items()}
        trained = {name: a for name, a in read.items() if np.issubdtype(a.dtype, np.floating)}
        if not sum(a.size for a in trained.values()):
            raise ConfigError(f"expected floating-point arrays to train, got {list(read) or 'no arrays'}")
        return cls(
            {name: a.shape for name, a in trained.items()}, {name: a.dtype for name, a in trained.items()},
            {name: array for name, array in arrays.items() if name not in trained},
        )  # fmt: skip

    def flat(self, arrays: Any) -> torch.Tensor | None:
        """(P,) float32, or None where the record is not of this layout or cannot be read."""
        parts = []
        try:
            for name, shape in self.shapes.items():
                array = arrays[name].numpy()
                if array.shape != shape or not np.issubdtype(array.dtype, np.floating):
                    return None
                parts.append(torch.from_numpy(array.astype(np.float32)).flatten())
        except (KeyError, ValueError, TypeError, EOFError, OSError):
            return None
        return torch.cat(parts)

    def record(self, params: torch.Tensor) -> Any:
        """The `ArrayRecord` of (P,) parameters, with the fixed arrays, in the types that came."""
        sizes = [int(np.prod(shape)) for shape in self.shapes.values()]
        parts = dict(zip(self.shapes, torch.split(params.detach().cpu(), sizes), strict=True))
        made = {
            name: Array.from_numpy_ndarray(part.numpy().reshape(self.shapes[name]).astype(self.types[name]))
            for name, part in parts.items()
        }
        return ArrayRecord({**made, **self.fixed})
