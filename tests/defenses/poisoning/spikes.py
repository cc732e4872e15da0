"""Planted spikes: data of which the best possible score is known, and the wrong scores that ports compute.

The ports stand here, and not beside the defences, so that nobody calls them by mistake.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import expm

from defenses.poisoning._spectre import ALPHA, covariance, highest


@dataclass(frozen=True)
class Planted:
    """features (n, k): clean rows N(0, I), then poisons. direction: (k,) unit. poisoned: (n,) bool.

    The log likelihood ratio of poison against clean is, but for a constant, `optimum`.
    """

    features: np.ndarray
    direction: np.ndarray
    poisoned: np.ndarray
    shift: float
    variance: float

    def optimum(self) -> np.ndarray:
        """(n,) log likelihood ratios of N(shift u, variance I) against N(0, I), up to a constant."""
        lengths = np.square(self.features).sum(1)
        shifted = lengths - 2 * self.shift * (self.features @ self.direction)
        return (lengths - shifted / self.variance) / 2


def planted(
    seed: int, shift: float, *, k: int = 16, clean: int = 5000, poisons: int = 250, variance: float = 1.0
) -> Planted:
    """Poisons N(shift u, variance I) in a random direction u, among standard Gaussians."""
    rng = np.random.default_rng(seed)
    u = rng.standard_normal(k)
    u /= np.linalg.norm(u)
    rows = [
        rng.standard_normal((clean, k)),
        np.sqrt(variance) * rng.standard_normal((poisons, k)) + shift * u,
    ]
    poisoned = np.arange(clean + poisons) >= clean
    return Planted(np.concatenate(rows), u, poisoned, shift, variance)


def recall(scores: np.ndarray, poisoned: np.ndarray, flagged: float = 1.5) -> float:
    """Share of the poisons among the `flagged` x as many highest scores."""
    return float(highest(scores, round(flagged * poisoned.sum()))[poisoned].mean())


def elementwise_scores(whitened: np.ndarray) -> np.ndarray:
    """x^T M x with the exponential taken of each entry, as two ports have it."""
    s = covariance(whitened, ddof=1)
    m = np.exp(ALPHA * (s - np.eye(len(s))) / (np.linalg.norm(s, 2) - 1))
    return np.einsum("ij,ij->i", whitened @ (m / np.trace(m)), whitened)


def frobenius_scores(whitened: np.ndarray) -> np.ndarray:
    """x^T M x with ||S - I||_F - 1 beneath the exponent, as the code released with shadow learning has it."""
    s = covariance(whitened, ddof=1)
    rest = s - np.eye(len(s))
    m = expm(ALPHA * rest / (np.linalg.norm(rest) - 1))
    return np.einsum("ij,ij->i", whitened @ (m / np.trace(m)), whitened)


def whitened(features: np.ndarray, selected: np.ndarray) -> np.ndarray:
    """Features (n, k) whitened and centred with their selected rows, as SPECTRE hands them to its scores."""
    values, vectors = np.linalg.eigh(covariance(features[selected]))
    return (features - features[selected].mean(0)) @ ((vectors / np.sqrt(values)) @ vectors.T)
