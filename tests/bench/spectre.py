"""SPECTRE's fourth moment on 5,000 rows of 4,096 features: never written out, against the k^2 x k^2 matrix.

python -m tests.bench.spectre
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
from scipy.sparse.linalg import eigsh
from threadpoolctl import threadpool_limits

from defenses.poisoning._robust_covariance import inverse_root, matrix_free_top
from defenses.poisoning._spectre import principal
from tests.bench.timing import Ratio, side_by_side

Way = Callable[[], object]


def features(n: int = 5000, d: int = 4096, seed: int = 0) -> np.ndarray:
    """Rows (n, d) with a decaying spectrum and 5 % of them spread widely along one direction."""
    rng = np.random.default_rng(seed)
    basis = rng.standard_normal((128, d)) * np.linspace(1, 0.2, 128)[:, None]
    inner = rng.standard_normal((n, 128))
    inner[: n // 20, 40] *= 6
    return inner @ basis + 0.1 * rng.standard_normal((n, d))


def fourth_moments(x: np.ndarray, k: int) -> tuple[Way, Way]:
    """The top eigenpair over k principal components: from the dense matrix, and matrix-free."""
    mean, basis = principal(x, k)
    z = (x - mean) @ basis
    y = z @ inverse_root(z.T @ z / len(z))

    def dense() -> np.ndarray:
        pairs = (y[:, :, None] * y[:, None, :]).reshape(len(y), -1)
        identity = np.eye(k).ravel()
        moment = pairs.T @ pairs / len(y)
        moment -= np.outer(identity, identity)
        return eigsh(moment, k=1, which="LA", v0=np.ones(k * k), tol=1e-4)[1][:, 0]

    def free() -> np.ndarray:
        return matrix_free_top(y)[1].ravel()

    likeness = abs(float(dense() @ free()))
    assert likeness > 1 - 1e-3, f"the two ways find other directions: {likeness}"
    return dense, free


def peak_bytes(way: Way) -> int:
    """Most memory that arrays made by `way` took at a time."""
    tracemalloc.start()
    way()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def compare(k: int, x: np.ndarray, turns: int = 3) -> tuple[Ratio, int, int]:
    """CPU time of both ways, and their peaks of memory in bytes."""
    with threadpool_limits(1, user_api="blas"):
        slow, fast = fourth_moments(x, k)
        return side_by_side(slow, fast, turns=turns), peak_bytes(slow), peak_bytes(fast)


def main() -> None:
    """Print the comparison as a Markdown table."""
    x = features()
    print(
        "| SPECTRE, 5,000 x 4,096, 4th moment | dense, s | matrix-free, s | ratio | dense, MB | free, MB | ratio |"
    )
    print("|---|---|---|---|---|---|---|")
    for k in (16, 36, 64):
        r, slow, fast = compare(k, x)
        print(
            f"| k = {k} ({k * k} x {k * k}) | {r.slow_s:.3f} | {r.fast_s:.3f} | **{r.ratio:.1f}** "
            f"({r.low:.1f} to {r.high:.1f}, {r.turns} turns) | {slow / 1e6:.1f} | {fast / 1e6:.1f} | "
            f"**{slow / fast:.1f}** |",
            flush=True,
        )


if __name__ == "__main__":
    main()
