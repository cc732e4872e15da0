"""What an attack hands to the scorer, saved as `.npz` without pickle and read back with its digest.

A trigger is numbers plus a pure function that knows them (`redteam.threats.poisoning.triggers`), never a closure.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from redteam.core.arrays import load_arrays
from redteam.core.errors import ArtifactError
from redteam.threats.agents.artifact import Scripts
from redteam.threats.evasion.artifact import Perturbed
from redteam.threats.moderation.artifact import Suffixes
from redteam.threats.poisoning.artifact import Poison
from redteam.threats.poisoning.federation.artifact import Clients
from redteam.threats.strings.artifact import Strings

__all__ = [
    "Artifact", "Clients", "Perturbed", "Poison", "Scripts", "Strings", "Suffixes", "load",
]  # fmt: skip

Artifact = Poison | Strings | Suffixes | Scripts | Clients | Perturbed
_KINDS: dict[str, Any] = {
    cls.kind: cls.of for cls in (Poison, Strings, Suffixes, Scripts, Clients, Perturbed)
}


def load(path: Path, sha256: str | None = None) -> Artifact:
    """Read an artifact of any kind.

    Raises:
        ArtifactError: see `load_arrays`; also for an unknown kind or missing parts.
    """
    arrays, meta = load_arrays(path, sha256)
    kind = meta.pop("kind", None)
    if kind not in _KINDS:
        known = ", ".join(_KINDS)
        raise ArtifactError(f"{path} holds an artifact of kind {kind!r}; this version reads: {known}")
    try:
        artifact: Artifact = _KINDS[kind](meta, arrays)
        return artifact
    except TypeError as error:
        raise ArtifactError(f"{path} lacks or adds parts: {error}") from error
