"""Image folders: PATH/train/<class>/* and PATH/test/<class>/*."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from redteam.core.errors import DataError
from redteam.data.decode import match_splits, read_files
from redteam.data.facts import computed_facts
from redteam.data.nouns import ImageDataset, ImageSet

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp"})
_TEST_NAMES = ("test", "val")
_OPTION = re.compile(r"(?P<path>.+)\?size=(?P<size>[1-9]\d{0,4})")


def image_files(folder: Path) -> list[Path]:
    """Image files below a folder, sorted by path; hidden files and other kinds are passed over."""
    files = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    return sorted((p for p in files if p.is_file()), key=lambda p: p.relative_to(folder).parts)


def load_folder(name: str) -> ImageDataset:
    """Load `folder:PATH` or `folder:PATH?size=N`; classes are the folder names, sorted.

    Raises:
        DataError: a folder is missing, a class is empty or in one split only, an image is damaged, or the
            images differ in size and no size was asked for.
    """
    root, size = _parse(name)
    train_dir, test_dir = _split_folders(root)
    train_files, test_files = class_files(train_dir), class_files(test_dir)
    require_same_classes(train_dir, train_files, test_dir, test_files)
    hint = "" if size else f"; 'folder:{root}?size=32' resizes the shorter side and crops the centre"
    train_images, train_labels = read_classes(train_files, size, hint)
    test_images, test_labels = read_classes(test_files, size, hint)
    train_images, test_images = match_splits(train_images, test_images, hint)
    classes = tuple(train_files)
    resized = f", resized and cropped to {size}x{size}" if size else ""
    return ImageDataset(
        name=name,
        train=ImageSet(train_images, train_labels, classes),
        test=ImageSet(test_images, test_labels, classes),
        facts=computed_facts(train_images, len(classes)),
        source=f"image folder {root.name}{resized}; {len(train_labels):,} training and "
        f"{len(test_labels):,} {test_dir.name} images",
        licence="unknown",
    )


def _parse(name: str) -> tuple[Path, int | None]:
    text = name.removeprefix("folder:")
    match = _OPTION.fullmatch(text)
    root = Path(match["path"] if match else text).expanduser()
    if not text or not root.is_dir():
        raise DataError(f"'{name}': {root} is no folder; expected folder:PATH or folder:PATH?size=32")
    return root, int(match["size"]) if match else None


def _split_folders(root: Path) -> tuple[Path, Path]:
    tests = [root / split for split in _TEST_NAMES if (root / split).is_dir()]
    if not (root / "train").is_dir() or not tests:
        came = ", ".join(sorted(p.name for p in root.iterdir())[:8]) or "nothing"
        raise DataError(
            f"expected {root}/train/<class>/ and {root}/test/<class>/ (or val), found in {root}: {came}"
        )
    return root / "train", tests[0]


def class_files(split: Path) -> dict[str, list[Path]]:
    """The image files of each class folder, sorted by class name.

    Raises:
        DataError: a class without an image.
    """
    folders = sorted(p for p in split.iterdir() if p.is_dir() and not p.name.startswith("."))
    files = {folder.name: image_files(folder) for folder in folders}
    for class_name, found in files.items():
        if not found:
            raise DataError(
                f"class '{class_name}' is empty: no image in {split / class_name} "
                f"(kinds known: {', '.join(sorted(SUFFIXES))})"
            )
    return files


def require_same_classes(
    train_dir: Path, train: dict[str, list[Path]], test_dir: Path, test: dict[str, list[Path]],
    what: str = "training and test",
) -> None:  # fmt: skip
    """Raise a `DataError` if two folders name different classes, or none. what: what to call them."""
    if not train:
        raise DataError(f"expected one folder per class in {train_dir}, found none")
    if set(train) != set(test):
        only = [
            f"only in {folder}: {', '.join(sorted(here - there))}"
            for folder, here, there in ((train_dir, set(train), set(test)), (test_dir, set(test), set(train)))
            if here - there
        ]
        raise DataError(f"{what} classes differ; {'; '.join(only)}")


def read_classes(files: dict[str, list[Path]], size: int | None, hint: str) -> tuple[np.ndarray, np.ndarray]:
    """All images (N, H, W, C) uint8 and labels (N,) int64 of `class_files`; `hint` ends an error about sizes."""
    counts = [len(found) for found in files.values()]
    everything = [path for found in files.values() for path in found]
    labels = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    return read_files(everything, len(everything), size, hint), labels
