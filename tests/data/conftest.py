"""Every test of this folder runs with its own cache and without the user's data folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_REAL = os.environ.get("REDTEAM_DATA")


@pytest.fixture(autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder of this test."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("REDTEAM_CACHE", str(cache))
    monkeypatch.delenv("REDTEAM_DATA", raising=False)
    return cache


@pytest.fixture
def real_data() -> Path:
    """The folder of real data, or a skip."""
    if not _REAL:
        pytest.skip("REDTEAM_DATA is not set: no real data at hand")
    return Path(_REAL)
