"""Data that ships with the package, the script that builds it, and scikit-learn's digits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redteam.core.errors import DataError
from redteam.core.hashing import digest_file
from redteam.data import load
from redteam.data.embedded import load_fashion14, pack, shrink, unpack
from redteam.data.facts import channel_stats
from redteam.data.idx import read_idx_split
from redteam.data.shipped import EMBEDDED_DIR
from scripts import build_embedded_fashion

from .make import pixels, write_idx_set

FASHION14_DIGEST = "f8a7edeb604c0c4affd85fd9ace4bdf942f03523fe40deeef20cd7cdc35ffba6"
DIGITS_DIGEST = "ec910427b5cb2e0f01936b69ceac8e4de5172771a1c20a2d680f33a7553d58ed"


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ([0, 0, 0, 1], 0),
        ([1, 1, 2, 2], 4),
        ([255, 255, 255, 255], 252),
        ([8, 8, 8, 8], 8),
        ([9, 9, 10, 10], 12),
    ],
)
def test_shrink_closed_form(block: list[int], expected: int) -> None:
    assert shrink(np.array(block, np.uint8).reshape(1, 2, 2)).tolist() == [[[expected]]]


@given(st.integers(0, 2**32 - 1))
def test_shrink_stays_within_half_a_level_of_the_mean(seed: int) -> None:
    images = pixels(2, 6, 4, seed=seed)
    small = shrink(images)
    mean = images.reshape(2, 3, 2, 2, 2).mean(axis=(2, 4))
    assert small.dtype == np.uint8 and small.shape == (2, 3, 2)
    assert not (small % 4).any()
    # half a level of the mean, then two of the 6-bit grid; the top level saturates at 252
    assert (np.abs(small - np.minimum(mean, 252)) <= 2.5).all()


def test_shipped_fashion() -> None:
    data = load("fashion-mnist-14")
    assert data.train.images.shape == (60_000, 14, 14, 1) and data.test.images.shape == (10_000, 14, 14, 1)
    assert np.bincount(data.train.labels).tolist() == [6000] * 10
    assert np.bincount(data.test.labels).tolist() == [1000] * 10
    assert (data.classes[0], data.classes[9]) == ("T-shirt/top", "Ankle boot")
    assert (data.facts.mean, data.facts.std) == channel_stats(data.train.images)
    assert data.digest == FASHION14_DIGEST
    assert "MIT" in data.licence


def test_mini_is_the_first_rows_of_the_whole() -> None:
    mini, whole = load("fashion-mini"), load("fashion-mnist-14")
    assert mini.name == "fashion-mini" and len(mini.train) == 20_000 and len(mini.test) == 10_000
    assert np.array_equal(mini.train.images, whole.train.images[:20_000])
    assert np.array_equal(mini.train.labels, whole.train.labels[:20_000])
    assert np.bincount(mini.train.labels).min() > 1900


def test_manifest_covers_every_shipped_file() -> None:
    files = json.loads((EMBEDDED_DIR / "manifest.json").read_text())["files"]
    shipped = {path.name for path in EMBEDDED_DIR.glob("*.npy.xz")}
    assert set(files) == shipped
    for name, entry in files.items():
        assert digest_file(EMBEDDED_DIR / name) == entry["sha256"]
        assert (EMBEDDED_DIR / name).stat().st_size == entry["bytes"]
    assert "Copyright (c) 2017 Zalando SE" in (EMBEDDED_DIR / "LICENSE-fashion-mnist.txt").read_text()


@pytest.fixture
def built(tmp_path: Path) -> Path:
    write_idx_set(tmp_path / "idx", pixels(20, 28, 28), pixels(10, 28, 28, seed=1))
    build_embedded_fashion.build(tmp_path / "idx", tmp_path / "out")
    return tmp_path / "out"


def test_build_is_reproducible_and_loads(built: Path, tmp_path: Path) -> None:
    write_idx_set(tmp_path / "gz", pixels(20, 28, 28), pixels(10, 28, 28, seed=1), packed=True)
    build_embedded_fashion.build(tmp_path / "gz", tmp_path / "again")
    assert {p.name: p.read_bytes() for p in built.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()
    }
    data = load_fashion14(built)
    assert (data.train.images[..., 0] == shrink(pixels(20, 28, 28))).all()
    assert data.test.labels.tolist() == list(range(10))


@pytest.mark.parametrize("name", ["train-images.npy.xz", "test-labels.npy.xz"])
def test_a_changed_file_is_refused(built: Path, name: str) -> None:
    data = bytearray((built / name).read_bytes())
    data[len(data) // 2] ^= 1
    (built / name).write_bytes(data)
    with pytest.raises(DataError, match=rf"{name} was changed: expected sha256 \w+, got \w+; reinstall"):
        load_fashion14(built)


def test_a_missing_file_and_a_missing_manifest_are_refused(built: Path) -> None:
    (built / "test-images.npy.xz").unlink()
    with pytest.raises(DataError, match=r"test-images\.npy\.xz is missing; reinstall"):
        load_fashion14(built)
    (built / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest\.json is missing or damaged"):
        load_fashion14(built)


def test_pack_refuses_pickled_objects_both_ways() -> None:
    assert (unpack(pack(pixels(3, 2))) == pixels(3, 2)).all()
    with pytest.raises(ValueError, match="allow_pickle"):
        pack(np.array([object()]))


def test_digits_split_is_fixed_stratified_and_complete() -> None:
    from sklearn.datasets import load_digits

    data = load("digits")
    assert (len(data.train), len(data.test)) == (1297, 500)
    assert data.digest == DIGITS_DIGEST
    assert (data.facts.mean, data.facts.std) == channel_stats(data.train.images)
    total = np.bincount(load_digits().target)
    assert (np.abs(np.bincount(data.test.labels) - total * 500 / 1797) < 1).all()
    assert (np.bincount(data.train.labels) + np.bincount(data.test.labels) == total).all()
    assert data.train.images.min() == 0 and data.train.images.max() == 255
    everything = np.concatenate([data.train.images, data.test.images]).sum(dtype=np.int64)
    assert everything == np.rint(load_digits().images * 255 / 16).sum()


@pytest.mark.data
def test_shipped_fashion_equals_the_original(real_data: Path) -> None:
    shipped = load("fashion-mnist-14")
    folder = real_data / "FashionMNIST" / "raw"
    if not folder.is_dir():
        pytest.skip("no Fashion-MNIST in REDTEAM_DATA")
    for split, have in (("train", shipped.train), ("test", shipped.test)):
        images, labels = read_idx_split(folder, split)
        assert (shrink(images[..., 0]) == have.images[..., 0]).all()
        assert (labels == have.labels).all()


@pytest.mark.data
@pytest.mark.slow
def test_shipped_files_are_what_the_script_builds(real_data: Path, tmp_path: Path) -> None:
    build_embedded_fashion.build(real_data / "FashionMNIST" / "raw", tmp_path)
    shutil.copy(EMBEDDED_DIR / "LICENSE-fashion-mnist.txt", tmp_path)
    assert {p.name: digest_file(p) for p in tmp_path.iterdir()} == {
        p.name: digest_file(p) for p in EMBEDDED_DIR.iterdir()
    }
