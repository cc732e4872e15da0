"""The contract of everything that is installed, and what holds of this package's own plug-ins."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

import pytest

from redteam.core import registry
from redteam.core.errors import UnknownNameError
from redteam.testing.contract import *  # noqa: F403

ROOT = Path(__file__).parents[1]


def test_every_source_key_is_in_the_bibliography():
    known = (ROOT / "docs" / "bibliography.md").read_text()
    for kind, group in registry.GROUPS.items():
        for entry in entry_points(group=group):
            if entry.dist is not None and entry.dist.name == "redteam":
                source = registry.get(kind, entry.name).source
                assert f"| {source} |" in known, f"{entry.name}: {source}"


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown attack 'random-flip'. Did you mean 'random-flips'"):
        registry.get("attack", "random-flip")
