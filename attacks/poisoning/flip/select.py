"""From label logits to labels: which rows to flip, and to what; and reading ready-made label files.

Pure NumPy. Source: [jha2023flip], its released code and file layout.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from glob import glob
from pathlib import Path

import numpy as np

from redteam.core.errors import InputError
from redteam.core.hashing import digest_file

# The released files subtract this from the true label's logit of a flipped row.
_RELEASED_GAP = 10_000.0


def margins(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """max over c != y of l_c, minus l_y. logits: (n, K). Returns (n,): positive where y lost its lead."""
    rows = np.arange(len(labels))
    others = logits.copy()
    others[rows, labels] = -np.inf
    return others.max(1) - logits[rows, labels]


def best_other(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The class with the largest logit apart from the true label, (n,) int64. Ties: the lowest class."""
    others = logits.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    return others.argmax(1).astype(np.int64)


def select_flips(
    runs: Sequence[np.ndarray], labels: np.ndarray, budget: int, known: int | None = None
) -> np.ndarray:
    """Labels with the `budget` rows of largest margin flipped to their best other class.

    runs: one or more (n, K) logits; a row's margin is its least over runs, its new label that of the
    mean logits. known: only the first so many rows may be flipped. Ties go to the lower row index, so
    the flips of a smaller budget are among those of a larger one.
    """
    margin = np.min([margins(run, labels) for run in runs], axis=0)
    other = best_other(np.mean(runs, axis=0), labels)
    margin[len(labels) if known is None else known :] = -np.inf
    order = np.argsort(-margin, kind="stable")[: min(budget, len(labels) if known is None else known)]
    out = labels.copy()
    out[order] = other[order]
    return out


def soften(runs: Sequence[np.ndarray], labels: np.ndarray, alpha: float) -> np.ndarray:
    """softFLIP: softmax(alpha * onehot + (1 - alpha) * mean logits), (n, K) float32.

    The one-hot has height 1 beside logits of height about 5, as in the released code, so alpha = 1 is
    a soft label too: the true class then holds e / (e + K - 1).
    """
    mean = np.mean(runs, axis=0)
    onehot = np.eye(mean.shape[1])[labels]
    mixed = alpha * onehot + (1 - alpha) * mean
    powers = np.exp(mixed - mixed.max(1, keepdims=True))
    return (powers / powers.sum(1, keepdims=True)).astype(np.float32)


def read_labels(path: Path, labels: np.ndarray, classes: int) -> np.ndarray:
    """A ready-made label file: logits (n, K), or labels (n,), for exactly these training rows.

    Returns (n, K) float64 logits. Labels become rows that are one-hot where they are the true ones
    and, as in the released layout, put the true label far below where they are not.

    Raises:
        InputError: not a plain `.npy` array; wrong length, dtype or class range; or labels that belong
            to another row order (fewer than half of them agree with the data set's own).
    """
    n = len(labels)
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"labels: no file at {path}") from None
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"labels: expected a NumPy .npy file without pickles at {path}; {error}") from None
    if not isinstance(array, np.ndarray) or array.ndim not in (1, 2) or len(array) != n:
        shape = getattr(array, "shape", None)
        raise InputError(
            f"labels: expected {n} rows, as the training set has: ({n}, {classes}) logits or ({n},) labels; "
            f"{path} holds {shape}"
        )
    if array.ndim == 1:
        array = _from_hard(array, labels, classes, path)
    elif not np.issubdtype(array.dtype, np.floating):
        raise InputError(
            f"labels: expected floating-point logits ({n}, {classes}), got {array.dtype} in {path}"
        )
    elif array.shape[1] != classes:
        raise InputError(f"labels: expected {classes} classes a row, got {array.shape[1]} in {path}")
    if not np.isfinite(array).all():
        raise InputError(f"labels: {path} holds values that are not finite")
    agree = float((array.argmax(1) == labels).mean())
    if agree < 0.5:
        raise InputError(
            f"labels: only {agree:.0%} of {path} agree with the true labels; it was made for another "
            "row order or another data set, and its flips would hit the wrong images"
        )
    return array.astype(np.float64)


def _from_hard(array: np.ndarray, labels: np.ndarray, classes: int, path: Path) -> np.ndarray:
    if not np.issubdtype(array.dtype, np.integer):
        raise InputError(
            f"labels: expected whole numbers for a file of one label a row, got {array.dtype} in {path}"
        )
    if array.min() < 0 or array.max() >= classes:
        raise InputError(
            f"labels: expected classes 0 to {classes - 1}, got {array.min()} to {array.max()} in {path}"
        )
    logits = np.eye(classes)[array]
    flipped = np.flatnonzero(array != labels)
    logits[flipped, labels[flipped]] -= 5 * _RELEASED_GAP
    return logits


def is_final(logits: np.ndarray, labels: np.ndarray) -> bool:
    """Whether logits are a finished budget file: every row one-hot, or its true label far below."""
    rows = np.arange(len(labels))
    clean = (np.sort(logits, axis=1)[:, :-1] == 0).all(1) & (logits[rows, labels] == 1)
    flipped = logits[rows, labels] < -_RELEASED_GAP
    return bool((clean | flipped).all())


def final_labels(files: Sequence[np.ndarray], labels: np.ndarray, budget: int) -> np.ndarray:
    """The labels of finished budget files: the rows that all of them flip, to the class of the mean.

    Raises:
        InputError: finished and raw files are mixed; or more rows are flipped than the budget allows.
    """
    if not all(is_final(one, labels) for one in files):
        raise InputError("labels: expected either finished label files or raw logits, got some of each")
    flipped = np.flatnonzero(np.all([one.argmax(1) != labels for one in files], axis=0))
    if len(flipped) > budget:
        raise InputError(
            f"labels: the files flip {len(flipped)} rows and the budget is {budget}; "
            f"pass --budget {len(flipped)}, or raw logits, from which any budget can be selected"
        )
    out = labels.copy()
    out[flipped] = best_other(np.mean(files, axis=0), labels)[flipped]
    return out


_PIN = "#sha256="


def pin_files(patterns: Sequence[str], labels: np.ndarray, classes: int) -> tuple[str, ...]:
    """`PATH#sha256=HEX` for every file that the patterns name, each checked to fit.

    The digest goes into the cell, so other content under the same name is another cell.

    Raises:
        InputError: a pattern that matches nothing, a file that does not fit (see `read_labels`), or one
            that is no longer what it was pinned as.
    """
    out = []
    for pattern in patterns:
        plain = pattern.partition(_PIN)[0]
        # Path.glob takes no absolute pattern.
        paths = sorted(glob(plain)) if any(c in plain for c in "*?[") else [plain]  # noqa: PTH207
        if not paths:
            raise InputError(f"labels: no file matches '{plain}'")
        for path in paths:
            read_labels(Path(path), labels, classes)
            pin = f"{path}{_PIN}{digest_file(Path(path))}"
            if _PIN in pattern and pin != pattern:
                raise InputError(f"labels: {path} is no longer the file that was planned; plan the run again")
            out.append(pin)
    return tuple(out)


def read_pinned(pin: str, labels: np.ndarray, classes: int) -> np.ndarray:
    """The logits of a pinned file; see `pin_files` for the errors."""
    (checked,) = pin_files((pin,), labels, classes)
    return read_labels(Path(checked.partition(_PIN)[0]), labels, classes)
