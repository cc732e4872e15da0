"""`hf:` data sets: a local folder of Parquet, or a hub id copied once into the data folder as Parquet."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from redteam.core.errors import DataError
from redteam.core.files import atomic_dir
from redteam.data import parquet
from redteam.data.access import Access, Origin, downloading
from redteam.data.facts import computed_facts
from redteam.data.nouns import ImageDataset, ImageSet

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_BATCH = 1024


def load_hf(name: str, access: Access) -> ImageDataset:
    """Load `hf:PATH` (a local folder) or `hf:ID` (a hub id: `owner/name`).

    Raises:
        DataError: no such folder, no Parquet in it, columns missing, images damaged, or a hub id that is
            neither at hand nor to be downloaded.
    """
    place = name.removeprefix("hf:")
    folder = Path(place).expanduser()
    if place and folder.is_dir():
        shards = parquet.find_shards(folder)
        if shards is None:
            raise DataError(f"expected train-*.parquet and test-*.parquet (or validation-*) in {folder}")
        return _dataset(name, shards, f"Hugging Face Parquet folder {folder.resolve().name}")
    if not _HUB_ID.fullmatch(place):
        raise DataError(f"'{name}': {folder} is no folder, and '{place}' is no hub id (owner/name)")
    return _dataset(name, _hub_copy(name, place, access), f"Hugging Face hub, {place}")


def _dataset(name: str, shards: parquet.Shards, origin: str) -> ImageDataset:
    content = parquet.read_parquet(shards)
    counts = f"{len(content.train_labels):,} training and {len(content.test_labels):,} test images"
    top = max(content.train_labels.max(), content.test_labels.max())
    classes = content.classes or tuple(str(label) for label in range(int(top) + 1))
    return ImageDataset(
        name=name,
        train=ImageSet(content.train_images, content.train_labels, classes),
        test=ImageSet(content.test_images, content.test_labels, classes),
        facts=computed_facts(content.train_images, len(classes)),
        source=f"{origin}{', JPEG bytes' if content.lossy else ''}; {counts}",
        licence="unknown",
    )


def _hub_copy(name: str, hub_id: str, access: Access) -> parquet.Shards:
    """The local Parquet copy of a hub data set, made first if that is allowed."""
    copy = access.data_dir / "hub" / hub_id.replace("/", "--")
    shards = parquet.find_shards(copy)
    if shards is not None:
        return shards
    if access.download and not access.offline and importlib.util.find_spec("datasets") is None:
        raise DataError(f"'{name}' needs the package that loads hub data sets: pip install datasets")
    page = Origin(who=f"the Hugging Face hub (data set '{hub_id}', by package `datasets`)", megabytes=None)
    access.permit(name, page, f"a folder {hub_id} and hub/{copy.name}/train-*.parquet")
    with atomic_dir(copy) as partial, downloading(name):
        _export(hub_id, partial)
    shards = parquet.find_shards(copy)
    if shards is None:
        raise DataError(f"{copy} exists and holds no complete copy of '{hub_id}': delete it and try again")
    return shards


def _export(hub_id: str, into: Path) -> None:
    """Download with `datasets` and write both splits as Parquet; its own cache is not kept."""
    datasets = importlib.import_module("datasets")
    with tempfile.TemporaryDirectory(dir=into, prefix="cache-") as cache:
        splits = datasets.load_dataset(hub_id, cache_dir=cache)
        test = next((split for split in parquet.TEST_PREFIXES if split in splits), None)
        if "train" not in splits or test is None:
            raise DataError(f"expected splits train and test in '{hub_id}', got {', '.join(splits)}")
        for split, source in (("train", splits["train"]), ("test", splits[test])):
            _write_split(datasets, hub_id, source, into / f"{split}-00000-of-00001.parquet")


def _write_split(datasets: Any, hub_id: str, rows: Any, path: Path) -> None:
    """Write one split's encoded images, labels and class names."""
    columns = list(rows.column_names)
    image = next((c for c in parquet.IMAGE_COLUMNS if c in columns), None)
    label = next((c for c in parquet.LABEL_COLUMNS if c in columns), None)
    if image is None or label is None:
        raise DataError(
            f"'{hub_id}': expected a column {' or '.join(parquet.IMAGE_COLUMNS)} and a column "
            f"{' or '.join(parquet.LABEL_COLUMNS)}, got {', '.join(columns)}"
        )
    names = getattr(rows.features[label], "names", None)
    features = {"info": {"features": {"image": {"_type": "Image"}, "label": {"names": names}}}}
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={"huggingface": json.dumps(features)},
    )
    encoded = rows.select_columns([image, label]).cast_column(image, datasets.Image(decode=False))
    with pq.ParquetWriter(path, schema) as writer:
        for batch in encoded.iter(batch_size=_BATCH):
            images = [{"bytes": _bytes_of(item), "path": None} for item in batch[image]]
            writer.write_table(pa.table({"image": images, "label": batch[label]}, schema=schema))


def _bytes_of(item: dict[str, Any]) -> bytes:
    """Hub sets made of loose files hold a path in place of the bytes."""
    data: bytes = Path(item["path"]).read_bytes() if item["bytes"] is None else item["bytes"]
    return data
