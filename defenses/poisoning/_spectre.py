"""The core of SPECTRE: quantum-entropy scores of representations whitened by a robust covariance.

Pure maths: arrays in, arrays out, float64, no randomness. Source: [hayase2021spectre], whose constants are
those of the code released with it. Scores do not change when all rows are shifted or rotated, and the order
of rows does not matter. Two things that ports of it get wrong are tested here: the exponential is that of a
matrix, and the norm beneath it the operator norm.

Deviations: samples are centred with the mean of the robust selection, also for k = 1. k is at most the rank of
the data, and small enough for the samples that may be left to have a covariance; where k is chosen, that is
two samples a dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.linalg import expm
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from defenses.poisoning._robust_covariance import inverse_root, removable, robust_selection
from redteam.core.errors import DataError, RedteamError

ALPHA = 4.0
MOST = 100
# Singular values below this share of the largest are rounding of float32 features.
_RANK = 1e-6
# Smaller side of the data up to which all its principal components are computed.
_EXACT = 1024


@dataclass(frozen=True)
class Spectre:
    """What SPECTRE says of n samples.

    scores: (n,) float64, higher is more suspicious. k: dimensions they were looked at in. selected: (n,) bool,
    samples the robust covariance is made of. suspicion: the operator norm of the covariance of all samples,
    whitened by those that stay when the highest scores go: how far these stand out. It is 1 for samples all
    alike, and made to compare labels.
    """

    scores: np.ndarray
    k: int
    selected: np.ndarray
    suspicion: float


@dataclass(frozen=True)
class Fitted:
    """A filter with everything fixed: it scores other samples as it would those it was fitted on.

    mean: (d,). basis: (d, k). centre: (k,). whitening, weight: (k, k); weight is the M of the source, of trace 1.
    threshold: the score of the last sample that the filter flags of those it was fitted on; inf if it flags none.
    """

    mean: np.ndarray
    basis: np.ndarray
    centre: np.ndarray
    whitening: np.ndarray
    weight: np.ndarray
    threshold: float
    found: Spectre

    def score(self, features: np.ndarray) -> np.ndarray:
        """(m,) float64 scores of features (m, d), higher is more suspicious."""
        x = (np.asarray(features, dtype=np.float64) - self.mean) @ self.basis
        return _quadratic((x - self.centre) @ self.whitening, self.weight)


def _quadratic(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    out: np.ndarray = np.einsum("ij,ij->i", x @ weight, x)
    return out


def covariance(x: np.ndarray, ddof: int = 0) -> np.ndarray:
    """(k, k) covariance of the rows of x (n, k)."""
    centred = x - x.mean(0)
    out: np.ndarray = centred.T @ centred / max(len(x) - ddof, 1)
    return out


def que_weight(whitened: np.ndarray) -> np.ndarray:
    """expm(4 (S - I) / (||S|| - 1)) / trace for a covariance S (k, k) of whitened samples.

    Where S nowhere exceeds I nothing stands out, and all directions weigh the same.
    """
    k = len(whitened)
    excess = float(np.linalg.norm(whitened, 2)) - 1
    if k == 1 or excess <= 1e-9:
        return np.eye(k) / k
    m = expm(ALPHA * (whitened - np.eye(k)) / excess)
    weight: np.ndarray = m / np.trace(m)
    return weight


def que_scores(whitened: np.ndarray) -> np.ndarray:
    """(n,) quantum-entropy scores x^T M x of whitened, centred samples (n, k)."""
    return _quadratic(whitened, que_weight(covariance(whitened, ddof=1)))


def principal(features: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean (d,) and up to `most` principal directions (d, k) of features (n, d), strongest first.

    k is less where the data have a lower rank, 0 where all rows are alike. Directions are up to sign.
    """
    mean = features.mean(0)
    x = features - mean
    n, d = x.shape
    if min(n, d) > max(_EXACT, most):
        from sklearn.utils.extmath import randomized_svd

        _, s, vt = randomized_svd(x, most, n_oversamples=50, n_iter=7, random_state=0)
        basis = vt.T
    else:
        values, vectors = np.linalg.eigh(x.T @ x if d <= n else x @ x.T)
        s = np.sqrt(np.maximum(values[::-1][:most], 0))
        basis = vectors[:, ::-1][:, :most]
        if d > n:
            basis = x.T @ (basis / np.where(s > 0, s, 1))
    # A mean is exact to some ulps of it, which constant columns would else pass for variance.
    noise = 1e-12 * float(np.abs(mean).max(initial=0)) * np.sqrt(n)
    rank = int((s > max(_RANK * float(s.max(initial=0)), noise)).sum())
    return mean, basis[:, :rank]


def dimensions(
    ks: Sequence[int] | None, rank: int, n: int, poisons: float, flagged: float
) -> tuple[int, ...]:
    """The values of k to try: those asked for, or the source's 10 from 1 to 100; lowered to what the data bear."""
    if ks is not None:
        most = min(rank, max(n - removable(n, poisons) - 1, 1))
        return tuple(sorted({min(max(k, 1), most) for k in ks}))
    left = n - max(removable(n, poisons), round(flagged * poisons))
    most = min(rank, MOST, max(left // 2, 1))
    return tuple(sorted({round(r**2) for r in np.linspace(1, np.sqrt(most), 10).tolist()}))


def highest(scores: np.ndarray, count: int) -> np.ndarray:
    """(n,) bool, the `count` highest of scores (n,); of equal ones the first. All, if there are no more."""
    out = np.zeros(len(scores), dtype=bool)
    out[np.argsort(-scores, kind="stable")[: max(count, 0)]] = True
    return out


@cache
def _pools() -> ThreadpoolController:
    return ThreadpoolController()


def _checked(features: np.ndarray) -> np.ndarray:
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or not len(x):
        raise DataError(f"SPECTRE: expected features (n, d) of at least one sample, got {x.shape}")
    if not np.isfinite(x).all():
        raise RedteamError(
            "SPECTRE: expected finite features; the classifier may have diverged (lower its learning rate), or "
            "samples without representations were not left out"
        )
    return x


def _at(z: np.ndarray, poisons: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For projections z (n, k): what the robust covariance selects, its mean, the whitening and the weight."""
    selected = robust_selection(z, poisons)
    whitening = inverse_root(covariance(z[selected]), z.var(0).max())
    weight = que_weight(covariance(z @ whitening, ddof=1))
    return selected, z[selected].mean(0), whitening, weight


def _standing_out(z: np.ndarray, flagged: np.ndarray) -> tuple[float, float]:
    """The source's merit tr(S' M') of a removal, and ||S'||: S' is the covariance whitened by what stays.

    Of z (n, k) as many dimensions count as there are pairs of samples left.
    """
    pairs = int((~flagged).sum()) // 2
    if not pairs:
        return 0.0, 1.0
    z = z[:, :pairs]
    s = covariance(z @ inverse_root(covariance(z[~flagged]), z.var(0).max()), ddof=1)
    return float(np.trace(s @ que_weight(s))), float(np.linalg.norm(s, 2))


def fit_spectre(
    features: np.ndarray, poisons: float, *, ks: Sequence[int] | None = None, flagged: float = 1.5
) -> Fitted:
    """SPECTRE fitted on one label's samples.

    features: (n, d). poisons: how many of them to assume poisoned. ks: numbers of dimensions to choose from
    (of one, no choice); None: the source's. flagged: samples flagged for each poison. Of several k the one
    after whose removal the rest whitens the whole least, tr(S' M') in the dimensions of the largest k.

    Raises:
        DataError: no samples, or values that are not finite.
    """
    # Beside a busy process the threads of a second core spin: 0.5 s for an eigenvector became 3.7 s (measured).
    with _pools().limit(limits=1, user_api="blas"):
        return _fit(_checked(features), poisons, ks, flagged)


def _fit(x: np.ndarray, poisons: float, ks: Sequence[int] | None, flagged: float) -> Fitted:
    n, d = x.shape
    mean, basis = principal(x, max(ks) if ks else MOST)
    count = round(flagged * poisons)
    if not basis.shape[1]:
        found = Spectre(np.zeros(n), 1, np.ones(n, dtype=bool), 1.0)
        blank = np.zeros((1, 1))
        return Fitted(mean, np.zeros((d, 1)), np.zeros(1), blank, blank + 1, np.inf, found)
    tried = dimensions(ks, basis.shape[1], n, poisons, flagged)
    z = (x - mean) @ basis[:, : tried[-1]]
    best: tuple[float, Fitted] | None = None
    for k in tried:
        selected, centre, whitening, weight = _at(z[:, :k], poisons)
        scores = _quadratic((z[:, :k] - centre) @ whitening, weight)
        out = highest(scores, count)
        merit, suspicion = _standing_out(z, out)
        if best is None or merit > best[0]:
            threshold = float(scores[out].min()) if out.any() else np.inf
            found = Spectre(scores, k, selected, suspicion)
            best = merit, Fitted(mean, basis[:, :k], centre, whitening, weight, threshold, found)
    assert best is not None
    return best[1]


def spectre(
    features: np.ndarray, poisons: float, *, ks: Sequence[int] | None = None, flagged: float = 1.5
) -> Spectre:
    """SPECTRE's verdict on one label's samples; parameters and errors as for `fit_spectre`."""
    return fit_spectre(features, poisons, ks=ks, flagged=flagged).found
