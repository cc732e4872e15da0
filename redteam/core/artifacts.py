"""What attacks hand to the scorer, read back from disk with its digest; each threat brings its own classes."""

from __future__ import annotations

from pathlib import Path

from redteam.core import threat
from redteam.core.arrays import load_arrays
from redteam.core.errors import ArtifactError
from redteam.core.types import Artifact


def load(path: Path, sha256: str | None = None) -> Artifact:
    """Read an artifact of any kind that an installed threat knows.

    Raises:
        ArtifactError: see `load_arrays`; also for an unknown kind or missing parts.
    """
    arrays, meta = load_arrays(path, sha256)
    target = threat.of_artifact(meta.pop("kind", None), path)
    try:
        artifact: Artifact = target.artifact.of(meta, arrays)
        return artifact
    except TypeError as error:
        raise ArtifactError(f"{path} lacks or adds parts: {error}") from error
