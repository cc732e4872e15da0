"""Data sets by name: in-memory arrays with a content digest.

Importing this package loads numpy and nothing heavier; each loader imports what it needs when called.
"""

from __future__ import annotations

from redteam.data.catalog import load, load_from, names

__all__ = ["load", "load_from", "names"]
