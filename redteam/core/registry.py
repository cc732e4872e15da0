"""Plug-ins by name, from entry points. Listing names and summaries imports none of them."""

from __future__ import annotations

import ast
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from redteam.core.errors import ConfigError, UnknownNameError
from redteam.core.types import Spec

Kind = Literal["target", "attack", "defense", "audit"]
GROUPS: dict[Kind, str] = {
    "target": "redteam.targets",
    "attack": "redteam.attacks",
    "defense": "redteam.defenses",
    "audit": "redteam.audits",
}


@cache
def _entries(kind: Kind) -> dict[str, EntryPoint]:
    """Entry points by name.

    Raises:
        ConfigError: two installed packages offer one name.
    """
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUPS[kind]):
        other = found.setdefault(entry.name, entry)
        if other.value != entry.value:
            raise ConfigError(
                f"two packages offer the {kind} '{entry.name}': {other.value} and {entry.value}; uninstall one"
            )
    return found


def names(kind: Kind) -> list[str]:
    """The registered names, sorted."""
    return sorted(_entries(kind))


def get(kind: Kind, name: str) -> Spec:
    """Import one plug-in.

    Raises:
        UnknownNameError: nothing of that name; the nearest one is suggested.
        ConfigError: the entry point does not lead to a `Spec` of that name and kind.
    """
    entries = _entries(kind)
    if name not in entries:
        raise UnknownNameError(kind, name, entries)
    spec = entries[name].load()
    if not isinstance(spec, Spec) or spec.name != name or spec.kind != kind:
        raise ConfigError(f"{entries[name].value} is not the Spec of a {kind} called '{name}'")
    return spec


def card(kind: Kind, name: str) -> str:
    """A plug-in's docstring, read from its source without importing it.

    Raises:
        UnknownNameError: nothing of that name.
    """
    entries = _entries(kind)
    if name not in entries:
        raise UnknownNameError(kind, name, entries)
    path = _source(entries[name].module)
    return ast.get_docstring(ast.parse(path.read_text())) or "" if path is not None else ""


def _source(module: str) -> Path | None:
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
