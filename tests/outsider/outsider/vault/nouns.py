"""Secrets, the vault that holds them, and what an attack on it hands over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from redteam.core.arrays import check_sizes, save_arrays
from redteam.core.config import check_ranges, knob
from redteam.core.context import Context
from redteam.core.hashing import digest_arrays

BELOW = 10


@dataclass(frozen=True)
class Secrets:
    """A data set. values: (n,) int64 in [0, BELOW)."""

    name: str
    values: np.ndarray

    @cached_property
    def digest(self) -> str:
        """sha256 of the values."""
        return digest_arrays({"values": self.values})


@dataclass(frozen=True, slots=True, kw_only=True)
class VaultConfig:
    """The vault."""

    model: str = knob("steel", "what it is made of; it changes nothing")
    secrets: int = knob(60, "how many secrets, from the first", low=1)

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Vault:
    """The target. lock: wrong guesses after which a secret answers no more; None: never."""

    dataset: Secrets
    config: VaultConfig
    ctx: Context
    lock: int | None = None
    kind: str = "vault"
    _asked: dict[int, int] = field(default_factory=dict, compare=False)

    def __len__(self) -> int:
        return min(self.config.secrets, len(self.dataset.values))

    def ask(self, index: int, guess: int) -> bool:
        """Whether a guess is right; a locked secret says no."""
        self._asked[index] = self._asked.get(index, 0) + 1
        locked = self.lock is not None and self._asked[index] > self.lock
        return not locked and int(self.dataset.values[index]) == guess

    def locked(self, lock: int) -> Vault:
        """The same vault with a lock, and nothing asked yet."""
        return replace(self, lock=lock, _asked={})

    def fingerprint(self) -> dict[str, Any]:
        """What decides its answers."""
        return {"secrets": self.dataset.digest, "lock": self.lock}


@dataclass(frozen=True)
class Guesses:
    """The artifact. guesses, tries: (n,) int64."""

    kind: ClassVar[str] = "guesses"

    guesses: np.ndarray
    tries: np.ndarray

    def __post_init__(self) -> None:
        check_sizes(self, ("guesses", "tries"))

    def save(self, path: Path) -> str:
        """Write to `path`. Returns the file's sha256."""
        return save_arrays(path, {"guesses": self.guesses, "tries": self.tries}, {"kind": self.kind})

    @classmethod
    def of(cls, meta: Mapping[str, Any], arrays: Mapping[str, Any]) -> Guesses:
        """From what `save` wrote."""
        return cls(**meta, **arrays)
