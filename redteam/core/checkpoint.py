"""The state of a search that is under way: saved whole, read back whole, refused if it is another search's.

Stages (`Context.stage`) are finished work and are found by content. A checkpoint is unfinished work and
is found by place, so it carries what it belongs to and says what has changed since.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from redteam.core.arrays import load_arrays, save_arrays
from redteam.core.errors import DriftError
from redteam.core.hashing import canonical_json

_IDENTITY = "identity"


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`key: was X, is Y` for every leaf in which two nested mappings of JSON values differ."""
    out = []
    for key in sorted({*before, *now}):
        was, name = before.get(key), f"{prefix}{key}"
        new = now.get(key)
        if isinstance(was, Mapping) and isinstance(new, Mapping):
            out += differences(was, new, f"{name}.")
        elif canonical_json(was) != canonical_json(new):
            out.append(f"{name}: was {was!r}, is {new!r}")
    return out


@dataclass(frozen=True)
class Checkpoint:
    """One file with the state of one search. path None: nothing is kept.

    identity: everything that decides how the search goes on, as plain JSON values.
    """

    path: Path | None
    identity: Mapping[str, Any]

    def load(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """(arrays, state) as saved, or None if there is nothing to go on from.

        Raises:
            DriftError: what was saved belongs to a search that differs from this one.
            ArtifactError: the file is damaged.
        """
        if self.path is None or not self.path.is_file():
            return None
        arrays, meta = load_arrays(self.path)
        if changed := differences(meta[_IDENTITY], self.identity):
            raise DriftError(
                f"the unfinished search in {self.path} is another one ({'; '.join(changed)}). "
                "Put back what changed to go on, or start afresh with --force"
            )
        return arrays, meta["state"]

    def save(self, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> None:
        """Replace the file by the present state, whole or not at all."""
        if self.path is not None:
            save_arrays(self.path, arrays, {_IDENTITY: dict(self.identity), "state": dict(state)})
