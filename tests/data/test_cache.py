"""The cache of decoded sets: used when intact, rebuilt when not, never in the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from redteam.data import load, parquet
from redteam.data.cache import Bundle, cached

from .make import pixels, write_parquet_set


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_parquet_set(tmp_path / "set", pixels(6, 5, 5, 3), pixels(4, 5, 5, 3, seed=1), names=["a", "b"])
    return tmp_path / "set"


def _only_file(cache: Path) -> Path:
    (file,) = (cache / "decoded").iterdir()
    return file


def _forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(parquet, "decode", refuse)


def test_second_load_comes_from_the_cache(
    source: Path, own_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(f"hf:{source}")
    _forbid_decoding(monkeypatch)
    again = load(f"hf:{source}")
    assert again.digest == first.digest and again.classes == ("a", "b")
    assert _only_file(own_folders).suffix == ".npz"
    files = ["test-00000-of-00001.parquet", "train-00000-of-00001.parquet"]
    assert sorted(p.name for p in source.iterdir()) == files


def test_other_bytes_are_another_entry(source: Path, own_folders: Path) -> None:
    first = load(f"hf:{source}")
    write_parquet_set(source, pixels(6, 5, 5, 3, seed=9), pixels(4, 5, 5, 3, seed=1), names=["a", "b"])
    assert load(f"hf:{source}").digest != first.digest
    assert len(list((own_folders / "decoded").iterdir())) == 2


@pytest.mark.parametrize("damage", ["garbage", "truncated", "empty", "consistent"])
def test_a_tampered_cache_is_rebuilt(source: Path, own_folders: Path, damage: str) -> None:
    first = load(f"hf:{source}")
    file = _only_file(own_folders)
    if damage == "consistent":  # a valid archive whose pixels are not those its digest was taken from
        with np.load(file) as archive:
            arrays = dict(archive)
        arrays["train_images"][0] ^= 1
        np.savez(file, **arrays)
    else:
        data = file.read_bytes()
        file.write_bytes({"garbage": b"nonsense", "truncated": data[: len(data) // 2], "empty": b""}[damage])
    assert load(f"hf:{source}").digest == first.digest
    with np.load(file) as archive:
        assert (archive["train_images"] == first.train.images).all()


def test_a_flipped_byte_anywhere_never_changes_the_data(source: Path, own_folders: Path) -> None:
    first = load(f"hf:{source}")
    file = _only_file(own_folders)
    intact = file.read_bytes()
    for position in range(0, len(intact), 17):
        file.write_bytes(intact[:position] + bytes([intact[position] ^ 0x55]) + intact[position + 1 :])
        assert load(f"hf:{source}").digest == first.digest


def test_a_cache_that_cannot_be_written_is_no_error(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("REDTEAM_CACHE", str(tmp_path / "file"))
    assert len(load(f"hf:{source}").train) == 6


def test_no_space_left_is_no_error_and_leaves_nothing(
    own_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    bundle = Bundle({"a": np.arange(3)}, {"n": 1})
    assert cached("key", lambda: bundle) is bundle
    assert not list((own_folders / "decoded").iterdir())
