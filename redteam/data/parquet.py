"""Image classification sets in Hugging Face's Parquet form."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq

from redteam.core.errors import DataError
from redteam.core.hashing import digest_file, digest_json
from redteam.data.cache import Bundle, cached
from redteam.data.decode import ImageStack, decode, is_jpeg, match_splits

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label")
TEST_PREFIXES = ("test", "validation", "valid", "val")
_DECODER = 1  # part of the cache key: raise it when decoding changes
_BATCH = 1024


@dataclass(frozen=True, slots=True)
class Shards:
    """The Parquet files of both splits, in order."""

    train: tuple[Path, ...]
    test: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParquetImages:
    """A decoded set. images: (N, H, W, C) uint8; labels: (N,) int64.

    classes: names from the schema, None where it has none. lossy: at least one image is JPEG.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...] | None
    lossy: bool


def find_shards(folder: Path) -> Shards | None:
    """`train-*.parquet` and `test-*.parquet` in the folder, or in the one subfolder that has them.

    Raises:
        DataError: several subfolders have them.
    """
    if not folder.is_dir():
        return None
    here = _shards_in(folder)
    if here is not None:
        return here
    below = {sub.name: _shards_in(sub) for sub in sorted(folder.iterdir()) if sub.is_dir()}
    found = {name: shards for name, shards in below.items() if shards is not None}
    if len(found) > 1:
        raise DataError(f"{folder} holds several data sets, give one of its subfolders: {', '.join(found)}")
    return next(iter(found.values()), None)


def _shards_in(folder: Path) -> Shards | None:
    train = tuple(sorted(folder.glob("train-*.parquet")))
    tests = (tuple(sorted(folder.glob(f"{prefix}-*.parquet"))) for prefix in TEST_PREFIXES)
    test = next((files for files in tests if files), ())
    return Shards(train, test) if train and test else None


def read_parquet(shards: Shards, label_columns: Sequence[str] = LABEL_COLUMNS) -> ParquetImages:
    """Decode both splits, or fetch them from the cache of decoded sets.

    Raises:
        DataError: columns are missing, a row holds no image or a damaged one, sizes differ, or the splits
            name different classes.
    """
    digests = [[digest_file(path) for path in files] for files in (shards.train, shards.test)]
    key = digest_json([_DECODER, PIL.__version__, list(label_columns), digests])
    bundle = cached(key, lambda: _decode_all(shards, label_columns))
    names = bundle.info["classes"]
    return ParquetImages(
        **bundle.arrays, classes=None if names is None else tuple(names), lossy=bool(bundle.info["lossy"])
    )


def _decode_all(shards: Shards, label_columns: Sequence[str]) -> Bundle:
    tables = {
        "train": [_Table.open(path, label_columns) for path in shards.train],
        "test": [_Table.open(path, label_columns) for path in shards.test],
    }
    everything = [*tables["train"], *tables["test"]]
    for table in everything:
        if table.classes != everything[0].classes:
            raise DataError(f"{table.path} names other classes than {everything[0].path}")
    train, train_lossy = _decode_split(tables["train"])
    test, test_lossy = _decode_split(tables["test"])
    train, test = match_splits(train, test)
    arrays = {"train_images": train, "test_images": test}
    for split, parts in tables.items():
        arrays[f"{split}_labels"] = np.concatenate([table.labels() for table in parts])
    names = everything[0].classes
    return Bundle(
        arrays, {"classes": None if names is None else list(names), "lossy": train_lossy or test_lossy}
    )


def _decode_split(tables: Sequence[_Table]) -> tuple[np.ndarray, bool]:
    count = sum(table.rows for table in tables)
    if not count:
        raise DataError(f"{tables[0].path} and its sister files hold no rows")
    stack, lossy = ImageStack(count), False
    for table in tables:
        for where, data in table.images():
            lossy = lossy or is_jpeg(data)
            stack.add(decode(data, where), where)
    return stack.finish(), lossy


@dataclass(frozen=True, slots=True)
class _Table:
    """One Parquet file whose columns have been checked."""

    path: Path
    image: str
    label: str
    rows: int
    classes: tuple[str, ...] | None

    @classmethod
    def open(cls, path: Path, label_columns: Sequence[str]) -> _Table:
        try:
            with pq.ParquetFile(path) as file:
                schema, rows = file.schema_arrow, file.metadata.num_rows
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"cannot read {path} as Parquet: {error}") from error
        images = [c for c in IMAGE_COLUMNS if c in schema.names and _holds_images(schema.field(c).type)]
        labels = [c for c in label_columns if c in schema.names and pa.types.is_integer(schema.field(c).type)]
        if not images or not labels:
            came = ", ".join(f"{field.name} ({field.type})" for field in schema)
            raise DataError(
                f"{path}: expected a column {' or '.join(IMAGE_COLUMNS)} (struct of bytes and path, or bytes)"
                f" and a column {' or '.join(label_columns)} (integers), got {came}"
            )
        return cls(path, images[0], labels[0], rows, _class_names(path, schema, labels[0]))

    def images(self) -> Iterator[tuple[str, bytes]]:
        """Where each image lies, for messages, and its encoded bytes."""
        row = 0
        for batch in self._batches(self.image):
            column = batch.column(0)
            if pa.types.is_struct(column.type):
                column = column.field("bytes")
            for data in column.to_pylist():
                where = f"row {row} of {self.path}"
                if data is None:
                    raise DataError(f"{where} holds no image bytes")
                yield where, data
                row += 1

    def labels(self) -> np.ndarray:
        """(N,) int64, none negative."""
        parts = [batch.column(0) for batch in self._batches(self.label)]
        column = pa.chunked_array(parts, type=parts[0].type if parts else pa.int64())
        if column.null_count:
            raise DataError(f"{self.path}: {column.null_count} rows have no {self.label}")
        labels: np.ndarray = column.to_numpy().astype(np.int64)
        if len(labels) and labels.min() < 0:
            row = int(labels.argmin())
            raise DataError(
                f"row {row} of {self.path}: expected a {self.label} of 0 or more, got {labels[row]}"
            )
        return labels

    def _batches(self, column: str) -> Iterator[pa.RecordBatch]:
        try:
            with pq.ParquetFile(self.path) as file:
                yield from file.iter_batches(batch_size=_BATCH, columns=[column])
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"cannot read {self.path} as Parquet: {error}") from error


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_images(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _class_names(path: Path, schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """Names from the schema's Hugging Face metadata; None where there are none."""
    raw = (schema.metadata or {}).get(b"huggingface")
    if raw is None:
        return None
    try:
        names = json.loads(raw)["info"]["features"][label].get("names")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: the Hugging Face metadata of its schema is malformed ({error})") from error
    return None if names is None else tuple(str(name) for name in names)
