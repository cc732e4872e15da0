"""Image folders and Tiny ImageNet's layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from redteam.core.errors import DataError
from redteam.data import load

from .make import encode, pixels, write_folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of grey 6x6 images: 3 + 2 for training, 1 + 1 for testing."""
    counts = {"train/cat": 3, "train/dog": 2, "test/cat": 1, "test/dog": 1}
    content = {f: pixels(n, 6, 6, seed=i) for i, (f, n) in enumerate(counts.items())}
    return write_folder(tmp_path / "pets", content)


def test_classes_are_sorted_folder_names(root: Path) -> None:
    data = load(f"folder:{root}")
    assert data.classes == ("cat", "dog") and data.train.images.shape == (5, 6, 6, 1)
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert (data.train.images[..., 0] == np.concatenate([pixels(3, 6, 6), pixels(2, 6, 6, seed=1)])).all()
    assert (data.facts.source_class, data.facts.target_class) == (1, 0)
    assert data.source == "image folder pets; 5 training and 2 test images"


def test_val_serves_as_test_and_other_files_are_passed_over(root: Path) -> None:
    (root / "test").rename(root / "val")
    (root / "train" / "cat" / "notes.txt").write_text("not an image")
    (root / "train" / "cat" / ".hidden.png").write_bytes(b"")
    (root / "train" / ".cache").mkdir()
    assert len(load(f"folder:{root}").train) == 5


def test_grey_and_colour_mixed_become_colour(root: Path) -> None:
    (root / "test" / "dog" / "0.png").write_bytes(encode(pixels(6, 6, 3)))
    data = load(f"folder:{root}")
    assert data.train.images.shape == (5, 6, 6, 3) and len(data.facts.mean) == 3


def test_a_corrupt_image_is_named(root: Path) -> None:
    bad = root / "train" / "dog" / "1.png"
    bad.write_bytes(bad.read_bytes()[:50])
    with pytest.raises(DataError, match=f"cannot decode the image in {bad}"):
        load(f"folder:{root}")


def test_an_empty_class_is_named(root: Path) -> None:
    (root / "train" / "emu").mkdir()
    with pytest.raises(DataError, match=r"class 'emu' is empty: no image in .*emu"):
        load(f"folder:{root}")


def test_classes_that_differ_are_listed_with_their_side(root: Path) -> None:
    (root / "test" / "dog").rename(root / "test" / "fox")
    with pytest.raises(DataError, match=r"only in .*train: dog; only in .*test: fox"):
        load(f"folder:{root}")


def test_sizes_that_differ_are_named_and_a_way_out_is_offered(root: Path) -> None:
    (root / "train" / "dog" / "0.png").write_bytes(encode(pixels(9, 8)))
    with pytest.raises(DataError, match=r"saw 6x6 \(.*cat/0\.png\) and 8x9 \(.*dog/0\.png\)") as caught:
        load(f"folder:{root}")
    assert f"folder:{root}?size=32" in str(caught.value)
    data = load(f"folder:{root}?size=4")
    assert data.train.images.shape == (5, 4, 4, 1) and data.name.endswith("?size=4")
    assert "cropped to 4x4" in data.source


def test_splits_that_differ_in_size_offer_the_same_way_out(root: Path) -> None:
    for file in (root / "test").rglob("*.png"):
        file.write_bytes(encode(pixels(4, 4)))
    with pytest.raises(DataError, match=r"6x6 \(training set\) and 4x4 \(test set\); 'folder:.*\?size=32'"):
        load(f"folder:{root}")


def test_layouts_that_are_no_image_folder(root: Path, tmp_path: Path) -> None:
    for name in ("folder:", "folder:/no/such", f"folder:{root}?size=0", f"folder:{root}?scale=2"):
        with pytest.raises(DataError, match=r"is no folder; expected folder:PATH or folder:PATH\?size=32"):
            load(name)
    with pytest.raises(DataError, match=r"/train/<class>/ and .* found in .*: pets"):
        load(f"folder:{tmp_path}")
    (tmp_path / "bare" / "train").mkdir(parents=True)
    (tmp_path / "bare" / "test").mkdir()
    with pytest.raises(DataError, match="expected one folder per class"):
        load(f"folder:{tmp_path / 'bare'}")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Three classes of Tiny ImageNet, two of which share their first word."""
    root = tmp_path / "tiny-imagenet-200"
    for i, wnid in enumerate(("n01", "n02", "n03")):
        images = list(pixels(2, 8, 8, 3, seed=i))
        write_folder(root, {f"train/{wnid}/images": images}, "JPEG")
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("0.JPEG\t0\t0\t7\t7\n")
    write_folder(root, {"val/images": [pixels(8, 8), pixels(8, 8, 3)]}, "JPEG")
    (root / "val" / "val_annotations.txt").write_text("0.JPEG\tn03\t0\t0\t7\t7\n1.JPEG\tn01\t0\t0\t7\t7\n")
    (root / "words.txt").write_text("n01\tcrane, bird\nn02\tcrane\nn03\tgoldfish, Carassius\nn99\tunused\n")
    return root


def test_tiny_imagenet_layout(tiny: Path) -> None:
    data = load("tiny-imagenet", data_dir=str(tiny.parent))
    assert data.classes == ("crane (n01)", "crane (n02)", "goldfish")
    assert data.train.labels.tolist() == [0, 0, 1, 1, 2, 2] and data.test.labels.tolist() == [2, 0]
    assert data.test.images.shape == (2, 8, 8, 3) and data.name == "tiny-imagenet"
    assert (data.facts.pad, data.facts.flip, data.facts.source_class) == (8, True, 2)


def test_tiny_imagenet_incomplete(tiny: Path) -> None:
    where = {"data_dir": str(tiny.parent)}
    table = tiny / "val" / "val_annotations.txt"
    good = table.read_text()
    table.write_text(good + "2.JPEG\tn77\t0\t0\t7\t7\n")
    with pytest.raises(DataError, match=r"line 3 of .*: expected an image and a class of .*n77"):
        load("tiny-imagenet", **where)
    table.write_text(good + "2.JPEG\tn01\t0\t0\t7\t7\n")
    with pytest.raises(DataError, match=r"cannot read .*2\.JPEG: No such file"):
        load("tiny-imagenet", **where)
    table.unlink()
    with pytest.raises(DataError, match=r"cannot read .*val_annotations\.txt"):
        load("tiny-imagenet", **where)
    (tiny / "train" / "n04" / "images").mkdir(parents=True)
    with pytest.raises(DataError, match="class 'n04' is empty"):
        load("tiny-imagenet", **where)
