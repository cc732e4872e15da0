"""A Python file of the user's own as a module."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from redteam.core.errors import ConfigError


def import_file(path: Path) -> ModuleType:
    """Run a file afresh under a private name; it may import its neighbours.

    Raises:
        ConfigError: there is no such file, or it raises. The message has the traceback lines in the user's files.
    """
    if not path.is_file():
        raise ConfigError(f"no file at {path}; expected FILE.py:NAME")
    name = f"_redteam_user_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and TorchScript look their module up
    try:
        with beside(path):
            # Compiled from the source that is there: a cached bytecode may be of another.
            exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    except Exception as error:  # noqa: BLE001 - a user's file may raise anything while it is imported
        sys.modules.pop(name, None)
        raise ConfigError(f"{path} cannot be imported: {said(error, path)}") from None
    return module


@contextmanager
def beside(path: Path) -> Iterator[None]:
    """What runs inside may import the neighbours of a file."""
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def said(error: BaseException, path: Path) -> str:
    """An error in one line, and below it where in the user's own files it came from."""
    text = f"{type(error).__name__}: {error}"
    folder = path.resolve().parent
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if folder in Path(f.filename).resolve().parents
    ]
    return "\n".join([text, *(f"  {f.filename}:{f.lineno}, in {f.name}: {f.line}" for f in frames)])
