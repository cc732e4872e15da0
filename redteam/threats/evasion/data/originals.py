"""MNIST-M and SYN themselves, read from the files in which they are passed on.

Neither has an official host that is known to last: nothing is downloaded, the user puts the files there.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from redteam.core.errors import DataError
from redteam.data.access import Access
from redteam.data.decode import read_files
from redteam.data.folder import SUFFIXES, image_files
from redteam.data.labels import DIGITS

# Of each: what a record calls it, and its licence.
TITLES = {
    "mnist-m": ("MNIST-M (Ganin et al.)", "none stated; made of MNIST and BSDS500 photographs"),
    "syn": ("SYN, synthetic digits (Ganin, Lempitsky)", "none stated"),
}
_MNIST_M_FOLDERS = ("mnist_m", "mnist-m", "MNIST-M")
_SYN_FOLDERS = ("", "syn", "synth", "SynthDigits", "synthetic_digits")
_SYN_FILES = ("synth_train_32x32.mat", "synth_test_32x32.mat")
_SPLITS = (("train", "training"), ("test", "testing"))


def load_mnist_m(access: Access) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images (N, H, W, 3) uint8, labels (N,) int64, and 0 for rows of the training part, 1 for the test part.

    Two layouts are read in mnist_m/: mnist_m_train/ and mnist_m_test/ beside their *_labels.txt, with a line
    `<file> <digit>` for each image, or train/<digit>/* and test/<digit>/*.

    Raises:
        DataError: no such folder, or one that is incomplete or damaged.
    """
    for root in (access.data_dir / folder for folder in _MNIST_M_FOLDERS):
        listed = [root / f"mnist_m_{split}_labels.txt" for split, _ in _SPLITS]
        if all(path.is_file() for path in listed):
            parts = [_read_list(path, root / path.name.removesuffix("_labels.txt")) for path in listed]
            break
        folders = [next((root / n for n in split if (root / n).is_dir()), None) for split in _SPLITS]
        if folders[0] is not None and folders[1] is not None:
            parts = [_read_digits(folder) for folder in folders if folder is not None]
            break
    else:
        raise _absent(
            "mnist-m", access, "mnist_m/mnist_m_train_labels.txt and mnist_m/mnist_m_test_labels.txt beside "
            "mnist_m/mnist_m_train/ and mnist_m/mnist_m_test/, or mnist_m/train/<digit>/ and mnist_m/test/<digit>/",
        )  # fmt: skip
    files = [path for found, _ in parts for path in found]
    labels = [label for _, found in parts for label in found]
    split = np.repeat([0, 1], [len(found) for found, _ in parts])
    return read_files(files, len(files), None), np.array(labels, np.int64), split


def _read_list(table: Path, folder: Path) -> tuple[list[Path], list[int]]:
    """Files and labels in the order of a `*_labels.txt`."""
    files, labels = [], []
    try:
        lines = table.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {table}: {error}") from error
    for number, text in enumerate(lines, start=1):
        fields = text.split()
        if not fields:
            continue
        if len(fields) != 2 or fields[1] not in DIGITS:
            raise DataError(f"line {number} of {table}: expected `<file> <digit>`, got '{text}'")
        files.append(folder / fields[0])
        labels.append(int(fields[1]))
    if not files:
        raise DataError(f"{table} names no image")
    return files, labels


def _read_digits(folder: Path) -> tuple[list[Path], list[int]]:
    """Files and labels of <folder>/<digit>/*."""
    files: list[Path] = []
    labels: list[int] = []
    for digit in DIGITS:
        found = image_files(folder / digit) if (folder / digit).is_dir() else []
        if not found:
            raise DataError(
                f"class '{digit}' is empty: no image in {folder / digit} (kinds known: {', '.join(sorted(SUFFIXES))})"
            )
        files += found
        labels += [int(digit)] * len(found)
    return files, labels


def load_syn(access: Access) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, H, W, 3) uint8 and labels (N,) int64 of synth_train_32x32.mat and synth_test_32x32.mat.

    Each holds X (H, W, 3, N) and y (N, 1), as SVHN does; a 10 is a zero there too. The whole set has about
    489,000 images, 1.5 GB in memory, and twice that while it is read.

    Raises:
        DataError: no such files, or damaged ones.
    """
    roots = [access.data_dir / folder for folder in _SYN_FOLDERS]
    root = next((r for r in roots if all((r / file).is_file() for file in _SYN_FILES)), None)
    if root is None:
        raise _absent(
            "syn",
            access,
            f"{' and '.join(_SYN_FILES)}, there or in {', '.join(f'{f}/' for f in _SYN_FOLDERS if f)}",
        )
    train, test = (_read_mat(root / file) for file in _SYN_FILES)
    if train[0].shape[1:] != test[0].shape[1:]:
        raise DataError(
            f"{root}: training images are {train[0].shape[1:]} and test images {test[0].shape[1:]}"
        )
    return np.concatenate([train[0], test[0]]), np.concatenate([train[1], test[1]])


def _read_mat(path: Path) -> tuple[np.ndarray, np.ndarray]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(path, variable_names=["X", "y"])
        images, labels = content["X"], content["y"].ravel()
    except (OSError, ValueError, TypeError, KeyError, NotImplementedError, zlib.error, MatReadError) as error:
        raise DataError(f"{path}: expected a MATLAB file with X and y, could not read it: {error}") from error
    if images.ndim != 4 or images.shape[2] != 3 or images.dtype != "uint8" or images.shape[3] != len(labels):
        raise DataError(
            f"{path}: expected X (H, W, 3, N) uint8 and y (N, 1), got X {images.shape} {images.dtype} "
            f"and {len(labels)} labels"
        )
    labels = labels.astype(np.int64)
    if len(labels) == 0 or labels.min() < 0 or labels.max() > len(DIGITS):
        raise DataError(f"{path}: expected labels from 0 to 10, got {np.unique(labels).tolist()}")
    return np.ascontiguousarray(images.transpose(3, 0, 1, 2)), labels % len(DIGITS)


def _absent(name: str, access: Access, layout: str) -> DataError:
    where = f"{access.data_dir}" if access.data_dir.is_dir() else f"{access.data_dir} (no such folder)"
    return DataError(
        f"domain '{name}' is not in {where}; looked for {layout}. It has no lasting official host, so nothing is "
        f"downloaded: place it there by hand, or take '{name}*', which redteam makes"
    )
