"""Data sets by name: in-memory arrays with a content digest.

Importing this package loads numpy and nothing heavier; each loader imports what it needs when called.
"""

from __future__ import annotations

from redteam.data.catalog import load, load_domains, names

__all__ = ["load", "load_domains", "names"]
