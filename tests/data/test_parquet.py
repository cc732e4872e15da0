"""Hugging Face Parquet folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redteam.core.errors import DataError
from redteam.data import load

from .make import encode, pixels, write_parquet, write_parquet_set

TRAIN, TEST = "train-00000-of-00001.parquet", "test-00000-of-00001.parquet"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 5),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([1, 3]),
    st.integers(0, 2**32 - 1),
)
def test_png_parquet_restores_every_pixel(
    tmp_path_factory: pytest.TempPathFactory, n: int, h: int, w: int, c: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("png")
    train, test = pixels(n + 1, h, w, c, seed=seed), pixels(n, h, w, c, seed=seed + 1)
    write_parquet_set(folder, train, test, names=["a", "b"])
    data = load(f"hf:{folder}")
    assert data.train.images.tobytes() == train.tobytes() and data.train.images.shape == train.shape
    assert data.test.images.tobytes() == test.tobytes()
    assert data.train.labels.tolist() == [i % 2 for i in range(n + 1)]


@pytest.mark.parametrize("options", [{"image": "img"}, {"label": "fine_label"}, {"raw": True}])
def test_columns_that_are_understood(tmp_path: Path, options: dict[str, object]) -> None:
    write_parquet_set(tmp_path, pixels(4, 3, 3, 3), pixels(2, 3, 3, 3), names=["a", "b"], **options)
    assert (load(f"hf:{tmp_path}").train.images == pixels(4, 3, 3, 3)).all()


def test_class_names_from_the_schema_or_else_numbers(tmp_path: Path) -> None:
    write_parquet_set(tmp_path / "named", pixels(4, 3, 3, 1), pixels(2, 3, 3, 1), names=["cat", "dog", "owl"])
    write_parquet_set(tmp_path / "bare", pixels(4, 3, 3, 1), pixels(2, 3, 3, 1), classes=3)
    assert load(f"hf:{tmp_path}/named").classes == ("cat", "dog", "owl")
    bare = load(f"hf:{tmp_path}/bare")
    assert bare.classes == ("0", "1", "2")
    assert bare.source == "Hugging Face Parquet folder bare; 4 training and 2 test images"
    assert (bare.facts.source_class, bare.facts.target_class) == (2, 1)


def test_many_shards_are_read_in_order(tmp_path: Path) -> None:
    images = pixels(9, 3, 3, 1)
    for shard in range(3):
        part = [encode(image) for image in images[3 * shard : 3 * shard + 3]]
        write_parquet(tmp_path / f"train-{shard:05}-of-00003.parquet", part, [0, 1, 1])
    write_parquet(tmp_path / "validation-00000-of-00001.parquet", [encode(images[0])], [0])
    data = load(f"hf:{tmp_path}")
    assert (data.train.images == images).all() and len(data.test) == 1


def test_one_subfolder_is_entered_and_several_are_refused(tmp_path: Path) -> None:
    write_parquet_set(tmp_path / "plain", pixels(2, 3, 3, 1), pixels(2, 3, 3, 1))
    assert len(load(f"hf:{tmp_path}").train) == 2
    write_parquet_set(tmp_path / "extra", pixels(2, 3, 3, 1), pixels(2, 3, 3, 1))
    with pytest.raises(DataError, match="several data sets, give one of its subfolders: extra, plain"):
        load(f"hf:{tmp_path}")


def test_grey_and_colour_mixed_become_colour(tmp_path: Path) -> None:
    grey, colour = pixels(3, 3), pixels(3, 3, 3)
    write_parquet(tmp_path / TRAIN, [encode(grey), encode(colour)], [0, 1])
    write_parquet(tmp_path / TEST, [encode(grey)], [0])
    data = load(f"hf:{tmp_path}")
    assert (data.train.images[0] == grey[..., None]).all() and (data.train.images[1] == colour).all()
    assert data.test.images.shape == (1, 3, 3, 3)


def _good(folder: Path) -> None:
    write_parquet_set(folder, pixels(4, 3, 3, 1), pixels(2, 3, 3, 1), names=["a", "b"])


def test_missing_columns_are_listed_beside_those_that_came(tmp_path: Path) -> None:
    _good(tmp_path)
    pq.write_table(pa.table({"picture": [b"x"], "label": ["cat"]}), tmp_path / TRAIN)
    with pytest.raises(DataError) as caught:
        load(f"hf:{tmp_path}")
    message = str(caught.value)
    assert "expected a column img or image" in message and "label or fine_label (integers)" in message
    assert "got picture (binary), label (string)" in message


def test_damaged_bytes_name_row_and_file(tmp_path: Path) -> None:
    _good(tmp_path)
    images = [encode(image) for image in pixels(4, 3, 3, 1)]
    write_parquet(tmp_path / TRAIN, [*images[:3], images[3][:40]], [0, 1, 0, 1], names=["a", "b"])
    with pytest.raises(DataError, match=rf"cannot decode the image in row 3 of .*{TRAIN}"):
        load(f"hf:{tmp_path}")


def test_rows_without_image_or_label_are_named(tmp_path: Path) -> None:
    _good(tmp_path)
    image = encode(pixels(3, 3))
    for images, labels, message in (
        ([image, None], [0, 1], f"row 1 of .*{TRAIN} holds no image bytes"),
        ([image, image], [0, None], "1 rows have no label"),
        ([image, image], [0, -1], f"row 1 of .*{TRAIN}: expected a label of 0 or more, got -1"),
    ):
        write_parquet(tmp_path / TRAIN, images, labels, names=["a", "b"])
        with pytest.raises(DataError, match=message):
            load(f"hf:{tmp_path}")


def test_labels_beyond_the_class_names_are_refused(tmp_path: Path) -> None:
    write_parquet_set(tmp_path, pixels(4, 3, 3, 1), pixels(2, 3, 3, 1), classes=3, names=["a", "b"])
    with pytest.raises(DataError, match=r"expected labels in \[0, 2\), got 0 to 2"):
        load(f"hf:{tmp_path}")


def test_sizes_that_differ_are_both_named(tmp_path: Path) -> None:
    _good(tmp_path)
    write_parquet(tmp_path / TRAIN, [encode(pixels(3, 3)), encode(pixels(3, 4))], [0, 1], names=["a", "b"])
    with pytest.raises(DataError, match=r"of one size, saw 3x3 \(row 0 of .*\) and 4x3 \(row 1 of "):
        load(f"hf:{tmp_path}")
    write_parquet(tmp_path / TRAIN, [encode(pixels(5, 5))] * 2, [0, 1], names=["a", "b"])
    with pytest.raises(DataError, match=r"saw 5x5 \(training set\) and 3x3 \(test set\)"):
        load(f"hf:{tmp_path}")


def test_splits_that_name_different_classes_are_refused(tmp_path: Path) -> None:
    _good(tmp_path)
    write_parquet(tmp_path / TEST, [encode(pixels(3, 3))], [0], names=["a", "c"])
    with pytest.raises(DataError, match="names other classes"):
        load(f"hf:{tmp_path}")


def test_files_that_are_not_parquet_or_have_broken_metadata(tmp_path: Path) -> None:
    _good(tmp_path)
    table = pq.read_table(tmp_path / TRAIN)
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps([1])}), tmp_path / TRAIN)
    with pytest.raises(DataError, match="metadata of its schema is malformed"):
        load(f"hf:{tmp_path}")
    (tmp_path / TRAIN).write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=f"cannot read .*{TRAIN} as Parquet"):
        load(f"hf:{tmp_path}")


def test_a_split_without_rows_is_refused(tmp_path: Path) -> None:
    _good(tmp_path)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    empty = pa.table({"image": pa.array([], kind), "label": pa.array([], pa.int64())})
    pq.write_table(empty, tmp_path / TEST)
    pq.write_table(pq.read_table(tmp_path / TRAIN).replace_schema_metadata(None), tmp_path / TRAIN)
    with pytest.raises(DataError, match="hold no rows"):
        load(f"hf:{tmp_path}")


def test_a_folder_without_parquet_and_a_path_that_is_neither(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected train-\*\.parquet and test-\*\.parquet"):
        load(f"hf:{tmp_path}")
    for place in ("/no/such/folder", "./here", "a/b/c", ""):
        with pytest.raises(DataError, match=r"is no folder, and '.*' is no hub id \(owner/name\)"):
            load(f"hf:{place}")


def _cifar_like(root: Path, kind: str) -> np.ndarray:
    images = pixels(10, 32, 32, 3)
    write_parquet_set(root / "cifar10", images, images[:2], kind=kind, image="img", classes=10)
    return images


def test_lossless_parquet_keeps_the_name(tmp_path: Path) -> None:
    images = _cifar_like(tmp_path, "PNG")
    data = load("cifar10", data_dir=str(tmp_path))
    assert data.name == "cifar10" and (data.train.images == images).all()
    assert data.source == "CIFAR-10, Hugging Face Parquet; 10 of 50,000 training and 2 of 10,000 test images"
    assert data.classes[9] == "truck" and data.facts.mean == (0.4914, 0.4822, 0.4465)
    with pytest.raises(DataError, match="holds lossless images: ask for 'cifar10'"):
        load("cifar10-jpeg", data_dir=str(tmp_path))


def test_jpeg_parquet_is_another_data_set_and_says_so(tmp_path: Path) -> None:
    images = _cifar_like(tmp_path, "JPEG")
    data = load("cifar10", data_dir=str(tmp_path))
    assert data.name == "cifar10-jpeg" and "lossy JPEG" in data.source
    assert (data.train.images != images).any()
    assert load("cifar10-jpeg", data_dir=str(tmp_path)).digest == data.digest


def test_one_jpeg_among_png_is_enough(tmp_path: Path) -> None:
    _cifar_like(tmp_path, "PNG")
    image = pixels(32, 32, 3)
    write_parquet(tmp_path / "cifar10" / TEST, [encode(image), encode(image, "JPEG")], [0, 1], image="img")
    assert load("cifar10", data_dir=str(tmp_path)).name == "cifar10-jpeg"


def test_a_lossy_name_without_lossy_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'mnist-jpeg' exists only as Parquet with JPEG bytes"):
        load("mnist-jpeg", data_dir=str(tmp_path), download=True)


def test_coarse_labels_come_from_their_own_column(tmp_path: Path) -> None:
    data = [encode(image) for image in pixels(3, 32, 32, 3)]
    for file in (TRAIN, TEST):
        for name in ("cifar100", "cifar20"):
            coarse = {"coarse_label": [4, 1, 19]}
            write_parquet(
                tmp_path / name / file, data, [0, 1, 99], image="img", label="fine_label", extra=coarse
            )
    fine, coarse20 = (load(name, data_dir=str(tmp_path)) for name in ("cifar100", "cifar20"))
    assert fine.train.labels.tolist() == [0, 1, 99] and fine.classes[99] == "worm"
    assert coarse20.train.labels.tolist() == [4, 1, 19] and len(coarse20.classes) == 20


def test_data_that_is_not_what_its_name_says(tmp_path: Path) -> None:
    write_parquet_set(tmp_path / "mnist", pixels(2, 8, 8, 1), pixels(2, 8, 8, 1))
    with pytest.raises(
        DataError, match=r"'mnist' has images of \(28, 28, 1\), the train split here has \(8, 8, 1\)"
    ):
        load("mnist", data_dir=str(tmp_path))
    write_parquet_set(tmp_path / "usps", pixels(12, 16, 16, 1), pixels(12, 16, 16, 1), classes=12)
    with pytest.raises(DataError, match="'usps' has 10 classes, the train split here has label 11"):
        load("usps", data_dir=str(tmp_path))
    write_parquet_set(tmp_path / "svhn", pixels(2, 32, 32, 3), pixels(2, 32, 32, 3), names=["a", "b"])
    with pytest.raises(DataError, match="expected the 10 classes of 'svhn', its schema names 2"):
        load("svhn", data_dir=str(tmp_path))
