"""Tiny ImageNet in the folder layout of its zip file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from redteam.core.errors import DataError
from redteam.data.access import Access, Origin, downloading
from redteam.data.decode import match_splits, read_files
from redteam.data.facts import customary_facts
from redteam.data.folder import image_files
from redteam.data.nouns import ImageDataset, ImageSet

_FOLDERS = ("tiny-imagenet-200", "tiny-imagenet")
_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
_ORIGIN = Origin(who="Stanford University's course CS231n (http://cs231n.stanford.edu)", megabytes=248)


def load_tiny_imagenet(access: Access) -> ImageDataset:
    """Load Tiny ImageNet; its validation set is the test set, since its test set has no labels.

    Classes are in the order of their WordNet ids, and named by the first synonym in words.txt.

    Raises:
        DataError: absent and not to be downloaded, incomplete, or damaged.
    """
    root = _find(access.data_dir)
    if root is None:
        access.permit("tiny-imagenet", _ORIGIN, f"{_FOLDERS[0]}/train/<wnid>/images/")
        root = _fetch(access.data_dir)
    wnids = sorted(p.name for p in (root / "train").iterdir() if p.is_dir())
    train_images, train_labels = _read_train(root, wnids)
    test_images, test_labels = _read_val(root, wnids)
    train_images, test_images = match_splits(train_images, test_images)
    classes = _class_names(root, wnids)
    return ImageDataset(
        name="tiny-imagenet",
        train=ImageSet(train_images, train_labels, classes),
        test=ImageSet(test_images, test_labels, classes),
        facts=customary_facts("tiny-imagenet", len(classes)),
        source=f"Tiny ImageNet (Stanford CS231n), original JPEG files; {len(train_labels):,} training and "
        f"{len(test_labels):,} validation images",
        licence="ImageNet terms: non-commercial research and education",
    )


def _find(data_dir: Path) -> Path | None:
    roots = (data_dir / folder for folder in _FOLDERS)
    return next((root for root in roots if (root / "train").is_dir()), None)


def _fetch(data_dir: Path) -> Path:
    from torchvision.datasets.utils import download_and_extract_archive

    with downloading("tiny-imagenet"):
        download_and_extract_archive(_URL, str(data_dir), md5=_MD5)
    return data_dir / _FOLDERS[0]


def _read_train(root: Path, wnids: list[str]) -> tuple[np.ndarray, np.ndarray]:
    files: list[Path] = []
    labels: list[int] = []
    for label, wnid in enumerate(wnids):
        found = image_files(root / "train" / wnid)
        if not found:
            raise DataError(f"class '{wnid}' is empty: no image in {root / 'train' / wnid / 'images'}")
        files += found
        labels += [label] * len(found)
    if not files:
        raise DataError(f"expected one folder per class in {root / 'train'}, found none")
    return read_files(files, len(files), None), np.array(labels, np.int64)


def _read_val(root: Path, wnids: list[str]) -> tuple[np.ndarray, np.ndarray]:
    table = root / "val" / "val_annotations.txt"
    number = {wnid: label for label, wnid in enumerate(wnids)}
    files, labels = [], []
    for line, text in enumerate(_lines(table), start=1):
        fields = text.split("\t")
        if len(fields) < 2 or fields[1] not in number:
            raise DataError(
                f"line {line} of {table}: expected an image and a class of {root / 'train'}, got '{text}'"
            )
        files.append(root / "val" / "images" / fields[0])
        labels.append(number[fields[1]])
    if not files:
        raise DataError(f"{table} names no image")
    return read_files(files, len(files), None), np.array(labels, np.int64)


def _class_names(root: Path, wnids: list[str]) -> tuple[str, ...]:
    """First synonyms; where two classes share one, the WordNet id follows."""
    words = dict(text.split("\t", 1) for text in _lines(root / "words.txt") if "\t" in text)
    first = [words.get(wnid, wnid).split(",")[0].strip() for wnid in wnids]
    seen = Counter(first)
    return tuple(
        word if seen[word] == 1 else f"{word} ({wnid})" for word, wnid in zip(first, wnids, strict=True)
    )


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
