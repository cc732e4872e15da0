"""Robust covariance by filtering: which samples to keep when a few of them are not from the Gaussian.

While whitened samples have a fourth moment that a Gaussian with few outliers could not have, those furthest
out along its top direction are dropped. Source: [hayase2021spectre], which takes the filter from
[diakonikolas2017practical]; constants and thresholds as in the code released with the former.

What the released code does otherwise than its source: the tail test compares its bound with the share of
samples *below* the value, so that the largest deviation always passes it. Kept, as the filter hardly removes
anything without it. Differences here: at least half of the samples are kept however many poisons are
assumed, and eigenvalues have a floor, so that degenerate data give an answer.
"""

from __future__ import annotations

from math import ceil, inf, log, sqrt

import numpy as np
from scipy.sparse.linalg import LinearOperator, eigsh

_CONSTANT = 10.0
_TAU = 0.1
_SHIFT = 3.0
# Up to this many dimensions the fourth moment is written out: 15 x 15 at most.
_DENSE = 5
# Up to this many samples their inner products are.
_FEW = 256
# Of the largest fourth moment. Bulks of them lie close together, and nothing is planted in a bulk.
_TOLERANCE = 1e-4
# Of the largest eigenvalue: what is less is taken for this.
_FLOOR = 1e-10


def inverse_root(covariance: np.ndarray, scale: float = 0.0) -> np.ndarray:
    """The symmetric (k, k) inverse square root of a covariance; of zeros, zeros.

    Eigenvalues have a floor: a tiny share of the largest, or of `scale`, where that is more.
    """
    values, vectors = np.linalg.eigh(covariance)
    top = max(float(values[-1]), scale, 0.0)
    if top == 0:
        return np.zeros_like(covariance)
    root: np.ndarray = (vectors / np.sqrt(np.maximum(values, _FLOOR * top))) @ vectors.T
    return root


def _pairs(k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and weights that make the upper triangle of a symmetric matrix a vector of equal norm."""
    rows, columns = np.triu_indices(k)
    return rows, columns, np.where(rows == columns, 1.0, sqrt(2.0))


def dense_top(y: np.ndarray) -> tuple[float, np.ndarray]:
    """As `fourth_moment_top`, from the fourth moment written out over symmetric matrices. y: (n, k)."""
    n, k = y.shape
    rows, columns, weights = _pairs(k)
    z = y[:, rows] * y[:, columns] * weights
    mean = z.mean(0)
    values, vectors = np.linalg.eigh(z.T @ z / n - np.outer(mean, mean))
    v = np.zeros((k, k))
    v[rows, columns] = vectors[:, -1] / weights
    return float(values[-1]), v + v.T - np.diag(np.diag(v))


def matrix_free_top(y: np.ndarray, start: np.ndarray | None = None) -> tuple[float, np.ndarray]:
    """As `fourth_moment_top`, with two products of y with a (k, k) matrix for each one with the operator."""
    n, k = y.shape
    mean = y.T @ y / n

    def apply(v: np.ndarray) -> np.ndarray:
        matrix = v.reshape(k, k)
        along = np.einsum("ij,ij->i", y @ matrix, y)
        out: np.ndarray = (y.T * along) @ y / n - (mean * matrix).sum() * mean
        return out.ravel()

    if start is None:
        start = np.random.default_rng(0).standard_normal((k, k))
    start = (start + start.T).ravel()
    operator = LinearOperator((k * k, k * k), matvec=apply, dtype=np.float64)
    values, vectors = eigsh(operator, k=1, which="LA", v0=start, tol=_TOLERANCE)
    v = vectors[:, 0].reshape(k, k)
    return float(values[0]), (v + v.T) / 2


def gram_top(y: np.ndarray) -> tuple[float, np.ndarray]:
    """As `fourth_moment_top`, from the (n, n) inner products of the samples' (k, k) matrices."""
    n = len(y)
    products = np.square(y @ y.T)
    means = products.mean(0)
    values, vectors = np.linalg.eigh((products - means - means[:, None] + means.mean()) / n)
    v = (y.T * (vectors[:, -1] - vectors[:, -1].mean())) @ y
    norm = float(np.linalg.norm(v))
    return float(values[-1]), v / norm if norm > 0 else v


def fourth_moment_top(y: np.ndarray, start: np.ndarray | None = None) -> tuple[float, np.ndarray]:
    """The largest eigenvalue of mean (y x y)(y x y)^T - vec(I) vec(I)^T, and its eigenvector as a matrix.

    y: (n, k) with second moment I. start: a symmetric (k, k) guess. Returns the eigenvalue and a symmetric
    (k, k) matrix of Frobenius norm 1, up to sign. Over standard Gaussians every eigenvalue is 2 (or 0). Where
    the data have not the full rank, I stands for what their second moment is.
    """
    n, k = y.shape
    if k <= _DENSE:
        return dense_top(y)
    return gram_top(y) if n <= _FEW else matrix_free_top(y, start)


def _tail(t: float, e: float) -> float:
    """The share of samples that may lie further out than t, in a share e of outliers."""
    return 1.0 if t <= 10 * log(1 / e) else 3 * e / (t * log(t)) ** 2


def _within(values: np.ndarray, cut: float, limit: int) -> np.ndarray:
    """(n,) bool: values up to `cut`, and in any case all but the `limit` largest; ties stay together."""
    lowest = np.sort(values)[len(values) - limit - 1]
    kept: np.ndarray = values <= max(cut, lowest)
    return kept


def _cut(deviations: np.ndarray, e: float) -> float:
    """Up to where deviations are kept: the first of them, in order, that is past the tail's bound, less 3."""
    ordered = np.sort(deviations)
    n = len(ordered)
    for i in range(int(np.searchsorted(ordered, _SHIFT, side="right")), n):
        t = float(ordered[i]) - _SHIFT
        if (i + 1) / n >= _tail(t, e):
            return t
    return inf


def removable(n: int, poisons: float) -> int:
    """The most samples that the filter may drop: twice the poisons, and never half of the samples."""
    return min(round(2 * poisons), n - ceil((n + 1) / 2)) if n else 0


def robust_selection(x: np.ndarray, poisons: float) -> np.ndarray:
    """(n,) bool, the samples that a robust covariance is made of; at most twice `poisons` are left out.

    x: (n, k) float64, centred. poisons: outliers to assume.
    """
    n, k = x.shape
    limit = removable(n, poisons)
    kept = np.arange(n)
    direction: np.ndarray | None = None
    e = min(poisons / n, 0.5) if n else 0.0
    while limit > 0 and e > 0:
        s = x[kept]
        y = s @ inverse_root(s.T @ s / len(s))
        lengths = np.einsum("ij,ij->i", y, y)
        far = _CONSTANT * k * log(len(s) / _TAU)
        if lengths.max() >= far:
            within = _within(lengths, np.nextafter(far, 0), limit)
        else:
            top, direction = fourth_moment_top(y, direction)
            if top <= 1 + _CONSTANT * e * log(1 / e) ** 2:
                break
            along = (np.einsum("ij,ij->i", y @ direction, y) - np.trace(direction)) / sqrt(2)
            deviations = np.abs(along - np.median(along))
            within = _within(deviations, _cut(deviations, e), limit)
        if within.all():
            break
        limit -= int((~within).sum())
        kept = kept[within]
    selected = np.zeros(n, dtype=bool)
    selected[kept] = True
    return selected
