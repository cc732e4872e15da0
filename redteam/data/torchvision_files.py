"""Files in torchvision's layout: found without importing it, read and downloaded through it.

torchvision checks the md5 sums of CIFAR and SVHN on every read and of all sets on download. IDX files are
read here, because torchvision wants them unpacked and an existing copy may hold only the .gz.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from redteam.core.errors import DataError
from redteam.data.idx import has_idx, read_idx_split

Arrays = dict[str, tuple[np.ndarray, np.ndarray]]

_IDX = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
_CIFAR = {
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
    "cifar100": ("CIFAR100", "cifar-100-python"),
    "cifar20": ("CIFAR100", "cifar-100-python"),
}
_FILES = {"svhn": ("train_32x32.mat", "test_32x32.mat"), "usps": ("usps.bz2", "usps.t.bz2")}
_CLASSES = {"svhn": "SVHN", "usps": "USPS", **_IDX, **{name: cls for name, (cls, _) in _CIFAR.items()}}
_PICKLED_ARRAYS = frozenset({"_reconstruct", "ndarray", "dtype", "encode"})


def is_present(name: str, root: Path) -> bool:
    """Whether the folder holds the set in torchvision's layout; damage shows when it is read."""
    if name in _IDX:
        return has_idx(root / _IDX[name] / "raw")
    if name in _CIFAR:
        return (root / _CIFAR[name][1]).is_dir()
    return all((root / file).is_file() for file in _FILES[name])


def fetch(name: str, root: Path) -> None:
    """Let torchvision download the set into `root`.

    Raises:
        OSError, RuntimeError, ValueError: whatever torchvision makes of a failure.
    """
    for split in ("train", "test"):
        _open(name, root, split, download=True)


def read(name: str, root: Path) -> Arrays:
    """Read a set that is present: per split, images (N, H, W, C) uint8 and labels (N,) int64.

    Raises:
        DataError: files are missing, damaged, or not those that torchvision knows.
    """
    if name in _IDX:
        folder = root / _IDX[name] / "raw"
        return {split: read_idx_split(folder, split) for split in ("train", "test")}
    try:
        return {split: _read_split(name, root, split) for split in ("train", "test")}
    except (OSError, RuntimeError, ValueError, EOFError, LookupError, pickle.UnpicklingError) as error:
        raise DataError(
            f"the copy of '{name}' in {root} is incomplete or damaged ({error}): "
            "delete it and load again with --download"
        ) from error


def _open(name: str, root: Path, split: str, *, download: bool) -> Any:
    """torchvision's data set object."""
    import torchvision.datasets

    cls = getattr(torchvision.datasets, _CLASSES[name])
    if name == "svhn":
        return cls(str(root), split=split, download=download)
    return cls(str(root), train=split == "train", download=download)


def _read_split(name: str, root: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    if name == "usps":
        _check_usps(root, split)
    opened = _open(name, root, split, download=False)
    images = np.asarray(opened.data)
    labels = opened.labels if name == "svhn" else opened.targets
    if name == "svhn":
        images = images.transpose(0, 2, 3, 1)
    elif name == "usps":
        images = images[..., None]
    elif name == "cifar20":
        labels = _coarse_labels(root / opened.base_folder / split)
    return np.ascontiguousarray(images), np.array(labels, dtype=np.int64)


def _check_usps(root: Path, split: str) -> None:
    """torchvision checks the sums of these two files only when it downloads them."""
    from torchvision.datasets import USPS
    from torchvision.datasets.utils import check_integrity

    _, file, md5 = USPS.split_list[split]
    if not check_integrity(str(root / file), md5):
        raise DataError(f"{root / file} is damaged: delete it and load again with --download")


class _ArrayUnpickler(pickle.Unpickler):
    """Reads arrays, strings and containers, and can construct nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith(("numpy", "_codecs")) and name in _PICKLED_ARRAYS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"unexpected {module}.{name}")


def _coarse_labels(path: Path) -> list[int]:
    """The labels torchvision leaves out; it has just checked this file's md5."""
    content = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    labels: list[int] = content["coarse_labels"]
    return labels
