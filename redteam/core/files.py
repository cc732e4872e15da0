"""Whole files or none: every write goes to a temporary name and is renamed when complete.

Also the one place that reads TOML.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from redteam.core.errors import ConfigError, StorageError

# Temporary paths being written: what a process that must end at once has to remove.
_partials: set[Path] = set()

# Where runs are kept unless another place is named, under the working directory.
DEFAULT_STORE = "runs"


def discard_partials() -> None:
    """Remove what is being written. For a signal handler that ends the process without unwinding."""
    for path in list(_partials):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _storage_error(path: Path, error: OSError) -> StorageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"no space left while writing {path}; nothing half-written was kept. Free some")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageError(f"no permission to write {path}; choose another folder with --store")
    return StorageError(f"cannot write {path}: {error.strerror or error}")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path`, else it is removed.

    Raises:
        StorageError: the folder cannot be written, or the disk is full.
    """
    partial: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        os.close(handle)
        partial = Path(name)
        _partials.add(partial)
        yield partial
        with partial.open("rb") as f:
            os.fsync(f.fileno())
        partial.chmod(0o644)
        partial.replace(path)
    except OSError as error:
        raise _storage_error(path, error) from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)
            _partials.discard(partial)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file atomically."""
    with atomic_path(path) as partial:
        partial.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file atomically."""
    write_bytes(path, text.encode())


@contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Like `atomic_path`, for a folder. An existing folder of that name wins and is kept."""
    partial: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
        _partials.add(partial)
        yield partial
        if not path.exists():
            partial.replace(path)
    except OSError as error:
        raise _storage_error(path, error) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
            _partials.discard(partial)


def load_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        ConfigError: no such file, or not TOML.
    """
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
