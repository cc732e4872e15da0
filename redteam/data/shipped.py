"""Files that ship with the package: where they lie, and reading them against their digest."""

from __future__ import annotations

import hashlib
from pathlib import Path

from redteam.core.errors import DataError

EMBEDDED_DIR = Path(__file__).parent / "embedded"


def read_checked(path: Path, sha256: str) -> bytes:
    """The bytes of an embedded file.

    Raises:
        DataError: it is missing, or its digest is another.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"embedded file {path} is missing; reinstall redteam") from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise DataError(
            f"embedded file {path} was changed: expected sha256 {sha256}, got {found}; reinstall redteam"
        )
    return data
