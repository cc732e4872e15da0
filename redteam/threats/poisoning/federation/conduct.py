"""How malicious clients act, beyond what their data say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from redteam.core.config import Checked, build, knob
from redteam.core.errors import ArtifactError, ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Conduct(Checked):
    """What an artifact's `conduct` may say."""

    epochs: int = knob(1, "local epochs, as a multiple of the honest clients'", low=1)
    scale: float = knob(1.0, "the update is multiplied by this", above=0)
    bound: float | None = knob(
        None, "then shortened to this many times the median norm of the round's honest updates", above=0
    )
    rate: float = knob(
        1.0, "share of a round's malicious clients that act; the others pass for honest", low=0, high=1
    )
    report: Literal["true", "clean"] = knob(
        "true", "what it answers a server: from the data it trained on, or from its clean images and labels"
    )

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Conduct:
        """From an artifact's numbers and words.

        Raises:
            ArtifactError: a key that is not known, or a value that does not fit.
        """
        try:
            return build(cls, values, where="conduct")
        except ConfigError as error:
            raise ArtifactError(f"the artifact's conduct is not one: {error}") from error

    def acting(self, present: int, rng: np.random.Generator) -> int:
        """How many of the malicious clients that are present act: rate x present on average, whole each time."""
        return int(np.floor(self.rate * present + rng.random())) if self.rate < 1 else present

    def apply(self, updates: torch.Tensor, acting: torch.Tensor, median: torch.Tensor | None) -> torch.Tensor:
        """Scale and shorten the updates (K, P) of the clients that act, (K,) bool; others stay as they are.

        median: see `honest_norm`; None, and nothing is shortened. Returns the updates, changed in place.
        """
        if (self.scale == 1 and self.bound is None) or not bool(acting.any()):
            return updates
        own = updates[acting] * self.scale
        if self.bound is not None and median is not None:
            # A zero update has no direction to shorten; one that is not finite is left to be rejected.
            factor = (self.bound * median / own.norm(dim=1)).clamp(max=1.0).nan_to_num(nan=1.0)
            own = own * factor[:, None]
        updates[acting] = own
        return updates


def honest_norm(updates: torch.Tensor) -> torch.Tensor | None:
    """Median norm of the finite ones of honest clients' updates (K, P); None if there are none."""
    norms = updates.norm(dim=1)
    norms = norms[norms.isfinite()]
    return norms.quantile(0.5) if len(norms) else None
