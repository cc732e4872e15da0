"""Plug-ins by name, from entry points, or from a file. Listing names and summaries imports none of them.

Wherever a plug-in's name is taken, `FILE.py:NAME` is too: NAME is a `Spec` in that file, or the name of one.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from redteam.core.errors import ConfigError, UnknownNameError, nearest
from redteam.core.hashing import digest_file
from redteam.core.pyfile import import_file
from redteam.core.types import Spec

Kind = Literal["target", "attack", "defense", "audit"]
GROUPS: dict[Kind, str] = {
    "target": "redteam.targets",
    "attack": "redteam.attacks",
    "defense": "redteam.defenses",
    "audit": "redteam.audits",
}
# FILE.py:NAME, and behind a second colon what a defence's settings are.
_FILE = re.compile(r"(?P<path>.+\.py):(?P<name>[^:,=]+)(?::(?P<settings>.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class FileSpec:
    """A plug-in that came from a file. ref: `FILE.py:NAME`, absolute. sha256: of the file when it was read."""

    spec: Spec
    ref: str
    sha256: str


_from_files: dict[tuple[Kind, str], FileSpec] = {}


@cache
def _installed() -> Any:
    return entry_points()


@cache
def entries(group: str) -> Mapping[str, EntryPoint]:
    """Entry points of a group by name.

    Raises:
        ConfigError: two installed packages offer one name.
    """
    found: dict[str, EntryPoint] = {}
    for entry in _installed().select(group=group):
        other = found.setdefault(entry.name, entry)
        if other.value != entry.value:
            raise ConfigError(
                f"two packages offer the {group} '{entry.name}': {other.value} and {entry.value}; uninstall one"
            )
    return found


def names(kind: Kind) -> list[str]:
    """The registered names, sorted."""
    return sorted(entries(GROUPS[kind]))


def get(kind: Kind, name: str) -> Spec:
    """Import one plug-in by its name, or by `FILE.py:NAME`, after which its plain name will do too.

    Raises:
        UnknownNameError: nothing of that name; the nearest one is suggested.
        ConfigError: the entry point does not lead to a `Spec` of that name and kind, or the file to none.
    """
    if _FILE.fullmatch(name):
        return _read(kind, name).spec
    if (kind, name) in _from_files:
        return _from_files[kind, name].spec
    found = entries(GROUPS[kind])
    if name not in found:
        raise UnknownNameError(kind, name, found)
    spec = found[name].load()
    if not isinstance(spec, Spec) or spec.name != name or spec.kind != kind:
        raise ConfigError(f"{found[name].value} is not the Spec of a {kind} called '{name}'")
    return spec


def file_of(spec: Spec) -> FileSpec | None:
    """Where a plug-in came from, if that was a file."""
    found = _from_files.get((spec.kind, spec.name))
    return found if found is not None and found.spec is spec else None


def split_settings(text: str) -> tuple[str, str]:
    """`name:key=value,...` or `FILE.py:NAME:key=value,...` as name and settings, which may be empty."""
    if match := _FILE.fullmatch(text):
        return f"{match['path']}:{match['name']}", match["settings"] or ""
    name, _, settings = text.partition(":")
    return name, settings


def spec_in_file(ref: str) -> Spec | None:
    """The plug-in that `FILE.py:NAME` leads to, of whatever kind; None for any other text.

    Raises:
        ConfigError: no such file, no such name, or no plug-in.
    """
    match = _FILE.fullmatch(ref)
    if match is None:
        return None
    path, name = Path(match["path"]).expanduser(), match["name"]
    module = import_file(path)
    specs = {key: value for key, value in vars(module).items() if isinstance(value, Spec)}
    spec = vars(module).get(name) or next((s for s in specs.values() if s.name == name), None)
    if spec is None:
        known = dict.fromkeys([*specs, *(s.name for s in specs.values())])
        hint = nearest(name, known) if known else "It holds no Spec at all; see CONTRIBUTING.md."
        raise ConfigError(f"{path} has no plug-in '{name}'. {hint}")
    if not isinstance(spec, Spec):
        raise ConfigError(
            f"{path}: {name} is no plug-in: expected a redteam.core.types.Spec, got a {type(spec).__name__}"
        )
    return spec


def _read(kind: Kind, ref: str) -> FileSpec:
    """The plug-in that a file holds.

    Raises:
        ConfigError: see `spec_in_file`; also for a plug-in of another kind, or a name that is taken.
    """
    path, _, name = ref.rpartition(":")
    file = Path(path).expanduser().resolve()
    # Taken before the file runs: one that rewrites itself is not recorded as what it became.
    sha256 = digest_file(file) if file.is_file() else ""
    for found in _from_files.values():
        if (found.spec.kind, found.ref, found.sha256) == (kind, f"{file}:{name}", sha256):
            return found
    spec = spec_in_file(ref)
    assert spec is not None
    if spec.kind != kind:
        raise ConfigError(f"{path}: {name} is a plug-in of the kind '{spec.kind}'; expected '{kind}'")
    return _keep(FileSpec(spec, f"{file}:{name}", sha256))


def _keep(found: FileSpec) -> FileSpec:
    """Refuse a name that an installed plug-in or another file has: a record would not tell the two apart at sight."""
    kind, name = found.spec.kind, found.spec.name
    if name in entries(GROUPS[kind]):
        raise ConfigError(
            f"{found.ref}: the {kind} '{name}' is installed already; give this one another name in its Spec"
        )
    other = _from_files.get((kind, name))
    if other is not None and other.sha256 == found.sha256:
        return other
    if other is not None and other.ref != found.ref:
        raise ConfigError(f"two files offer the {kind} '{name}': {other.ref} and {found.ref}; rename one")
    _from_files[kind, name] = found
    return found


def card(kind: Kind, name: str) -> str:
    """A plug-in's docstring, read from its source without importing it.

    Raises:
        UnknownNameError: nothing of that name.
    """
    if match := _FILE.fullmatch(name):
        path: Path | None = Path(match["path"]).expanduser()
    elif (kind, name) in _from_files:
        path = Path(_from_files[kind, name].ref.rpartition(":")[0])
    else:
        found = entries(GROUPS[kind])
        if name not in found:
            raise UnknownNameError(kind, name, found)
        path = source(found[name].module)
    return _docstring(path.read_text()) if path is not None else ""


def _docstring(text: str) -> str:
    """The docstring of a module's source; where it comes first in the usual quotes, only that much is parsed."""
    end = text.find('"""', 3) if text.startswith('"""') else -1
    return ast.get_docstring(ast.parse(text[: end + 3] if end > 0 else text)) or ""


def source(module: str) -> Path | None:
    """The file of a module, found without importing the packages it lies in, which `find_spec` would do."""
    top, *inner = module.split(".")
    found = find_spec(top)
    if found is None:
        return None
    if not inner:
        return Path(found.origin) if found.origin else None
    for folder in found.submodule_search_locations or ():
        place = Path(folder, *inner)
        for path in (place / "__init__.py", place.with_suffix(".py")):
            if path.is_file():
                return path
    return None


def summary(kind: Kind, name: str) -> str:
    """The first line of a plug-in's card."""
    return card(kind, name).split("\n", 1)[0]
