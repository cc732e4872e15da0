"""The environment in which a threat's page is rendered: its own template, which extends the shared one."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from redteam.report import words

_SHARED = Path(__file__).parent


def environment(folder: Path) -> Environment:
    """A Jinja environment over the templates of a room (in `folder`) and the shared ones; undefined names raise."""
    out = Environment(
        loader=FileSystemLoader([folder, _SHARED]), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    out.filters |= {"interval": words.with_interval, "fraction": words.fraction}
    return out
