"""Hub ids, with a stand-in for the `datasets` package."""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from redteam.core.errors import DataError
from redteam.data import load

from .make import encode, pixels


class _Rows:
    """What the loader uses of `datasets.Dataset`."""

    def __init__(self, columns: dict[str, list[Any]]) -> None:
        self._columns = columns
        self.column_names = list(columns)
        self.features = {name: SimpleNamespace(names=["cat", "dog"]) for name in columns}

    def select_columns(self, names: list[str]) -> _Rows:
        return _Rows({name: self._columns[name] for name in names})

    def cast_column(self, name: str, kind: Any) -> _Rows:
        assert kind == ("Image", False)
        return self

    def iter(self, batch_size: int) -> Iterator[dict[str, list[Any]]]:
        yield self._columns


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Data sets by id; the stand-in package serves them and counts its calls."""
    sets: dict[str, Any] = {"calls": 0}

    def load_dataset(name: str, cache_dir: str) -> Any:
        sets["calls"] += 1
        assert Path(cache_dir).is_dir()
        if name not in sets:
            raise FileNotFoundError(f"no data set {name}")
        return sets[name]

    package = ModuleType("datasets")
    package.__spec__ = importlib.machinery.ModuleSpec("datasets", None)
    package.load_dataset = load_dataset  # type: ignore[attr-defined]
    package.Image = lambda decode: ("Image", decode)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", package)
    return sets


def _rows(image: str = "img", label: str = "label") -> _Rows:
    items = [{"bytes": encode(picture), "path": None} for picture in pixels(2, 4, 4, 3)]
    return _Rows({"id": [7, 8], image: items, label: [0, 1]})


def test_a_hub_id_is_copied_once_and_read_offline_after(hub: dict[str, Any], tmp_path: Path) -> None:
    hub["owner/pets"] = {"train": _rows(), "validation": _rows()}
    data = load("hf:owner/pets", data_dir=str(tmp_path), download=True)
    assert data.classes == ("cat", "dog") and (data.train.images == pixels(2, 4, 4, 3)).all()
    assert data.source.startswith("Hugging Face hub, owner/pets; 2 training")
    assert load("hf:owner/pets", data_dir=str(tmp_path), offline=True).digest == data.digest
    assert hub["calls"] == 1
    assert sorted(p.name for p in (tmp_path / "hub" / "owner--pets").iterdir()) == [
        "test-00000-of-00001.parquet",
        "train-00000-of-00001.parquet",
    ]


def test_images_that_are_paths_are_read(hub: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(pixels(4, 4, 3)))
    rows = _Rows({"image": [{"bytes": None, "path": str(tmp_path / "a.png")}], "fine_label": [1]})
    hub["pets"] = {"train": rows, "test": rows}
    data = load("hf:pets", data_dir=str(tmp_path), download=True)
    assert (data.train.images[0] == pixels(4, 4, 3)).all()


def test_flags_are_obeyed(hub: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"downloaded from the Hugging Face hub \(data set 'o/n'.*--download"):
        load("hf:o/n", data_dir=str(tmp_path))
    with pytest.raises(DataError, match="--offline forbids downloading it from the Hugging Face hub"):
        load("hf:o/n", data_dir=str(tmp_path), offline=True, download=True)
    assert hub["calls"] == 0


def test_what_the_hub_may_get_wrong(hub: dict[str, Any], tmp_path: Path) -> None:
    hub["a"] = {"train": _rows()}
    hub["b"] = {"train": _rows(image="picture"), "test": _rows()}
    for name, message in (
        ("a", "expected splits train and test in 'a', got train"),
        ("b", "'b': expected a column img or image and a column label or fine_label, got id, picture, label"),
        ("c", "the download of 'hf:c' failed: no data set c"),
    ):
        with pytest.raises(DataError, match=message):
            load(f"hf:{name}", data_dir=str(tmp_path), download=True)
    assert not list((tmp_path / "hub").iterdir())


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install datasets"):
        load("hf:o/n", data_dir=str(tmp_path), download=True)


def test_an_incomplete_copy_is_not_overwritten(hub: dict[str, Any], tmp_path: Path) -> None:
    hub["pets"] = {"train": _rows(), "test": _rows()}
    (tmp_path / "hub" / "pets").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no complete copy of 'pets': delete it"):
        load("hf:pets", data_dir=str(tmp_path), download=True)
