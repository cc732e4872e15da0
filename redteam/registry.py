"""Plug-ins by name, from entry points. Listing names and summaries imports none of them."""

from __future__ import annotations

import ast
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from redteam.errors import ConfigError, UnknownNameError
from redteam.types import Spec

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
    found = find_spec(entries[name].module)
    if found is None or found.origin is None:
        return ""
    return ast.get_docstring(ast.parse(Path(found.origin).read_text())) or ""


def summary(kind: Kind, name: str) -> str:
    """The first line of a plug-in's card."""
    return card(kind, name).split("\n", 1)[0]
