"""Divergences against closed forms on Gaussians, and what they must not depend on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from redteam.threats.evasion.adapt.divergence import GAMMAS, coral, critic_loss, mmd

MEAN_S, MEAN_T = np.array([0.0, 1.0, -0.5]), np.array([0.3, 0.2, 0.1])
ROOT_S = np.array([[1.0, 0.0, 0.0], [0.5, 0.8, 0.0], [0.0, 0.2, 0.6]])
ROOT_T = np.array([[0.7, 0.1, 0.0], [0.0, 1.1, 0.0], [0.3, 0.0, 0.9]])
DIVERGENCES = [mmd, coral]


def gaussian(
    mean: np.ndarray, root: np.ndarray, replicas: int, n: int, rng: np.random.Generator
) -> torch.Tensor:
    """(replicas, n, D) rows of N(mean, root root^T)."""
    return torch.from_numpy(rng.standard_normal((replicas, n, len(mean))) @ root.T + mean)


def features(seed: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kernel_mean(mean: np.ndarray, cov: np.ndarray) -> float:
    """E of the sum over GAMMAS of exp(-gamma |v|^2) for v of N(mean, cov)."""
    total = 0.0
    for gamma in GAMMAS:
        inside = np.eye(len(mean)) + 2 * gamma * cov
        total += math.exp(-gamma * mean @ np.linalg.solve(inside, mean)) / math.sqrt(np.linalg.det(inside))
    return total


def test_coral_tends_to_its_closed_form_between_gaussians():
    cov_s, cov_t = ROOT_S @ ROOT_S.T, ROOT_T @ ROOT_T.T
    exact = ((MEAN_S - MEAN_T) ** 2).mean() + ((cov_s - cov_t) ** 2).mean()
    rng = np.random.default_rng(0)
    errors = []
    for n in (100, 10_000):
        found = coral(gaussian(MEAN_S, ROOT_S, 40, n, rng), gaussian(MEAN_T, ROOT_T, 40, n, rng))
        errors.append(float((found - exact).square().mean().sqrt()))
    assert errors[1] < 0.02 * exact
    # Root mean squared error falls as 1 / sqrt(n): tenfold, up to chance.
    assert 5 < errors[0] / errors[1] < 20


def test_mmd_has_the_mean_of_its_closed_form_between_gaussians():
    cov_s, cov_t = ROOT_S @ ROOT_S.T, ROOT_T @ ROOT_T.T
    n, rng = 60, np.random.default_rng(1)
    found = mmd(gaussian(MEAN_S, ROOT_S, 400, n, rng), gaussian(MEAN_T, ROOT_T, 400, n, rng)).numpy()
    zero = np.zeros(3)
    own = kernel_mean(zero, 2 * cov_s) + kernel_mean(zero, 2 * cov_t)
    limit = own - 2 * kernel_mean(MEAN_S - MEAN_T, cov_s + cov_t)
    # Of the n^2 pairs within a batch n are of a row with itself, where the kernel is the number of widths.
    exact = limit + (2 * len(GAMMAS) - own) / n
    error = found.std(ddof=1) / math.sqrt(len(found))
    assert abs(found.mean() - exact) < 4 * error
    assert abs(found.mean() - limit) > 20 * error, "the test would see the bias"


@pytest.mark.parametrize("shift", [0.5, 2.0])
def test_critic_loss_of_the_best_critic_is_ln_2_minus_jensen_shannon(shift):
    rng = np.random.default_rng(2)
    s, t = rng.standard_normal((20, 20_000)), rng.standard_normal((20, 20_000)) + shift

    def best(x: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(norm.logpdf(x) - norm.logpdf(x, shift))

    def integrand(x: float) -> float:
        p, q = norm.pdf(x), norm.pdf(x, shift)
        return 0.5 * (p * math.log(2 * p / (p + q)) + q * math.log(2 * q / (p + q)))

    js = quad(integrand, -9, 9 + shift)[0]
    found = critic_loss(best(s), best(t)).numpy()
    assert abs(found.mean() - (math.log(2) - js)) < 4 * found.std(ddof=1) / math.sqrt(len(found))
    for other in (0.5, 2.0):
        assert critic_loss(other * best(s), other * best(t)).mean() > found.mean()
    assert critic_loss(best(s) + 0.5, best(t) + 0.5).mean() > found.mean()


def test_a_critic_that_does_not_know_loses_ln_2():
    assert torch.allclose(critic_loss(torch.zeros(2, 5), torch.zeros(2, 7)), torch.full((2,), math.log(2)))


def test_sizes_of_the_critics_two_batches_do_not_count():
    s, t = features(0, (2, 4)), features(1, (2, 6))
    assert torch.allclose(critic_loss(s, t), critic_loss(s.repeat(1, 3), t))


@pytest.mark.parametrize("divergence", DIVERGENCES)
@given(
    seed=st.integers(0, 10**6),
    b=st.integers(2, 7),
    d=st.integers(1, 5),
    size=st.sampled_from([0.01, 1.0, 30.0]),
)
def test_divergences_are_symmetric_at_least_zero_and_zero_for_the_same_rows(divergence, seed, b, d, size):
    s, t = size * features(seed, (2, b, d)), size * features(seed + 1, (2, b + 1, d))
    found = divergence(s, t)
    assert found.shape == (2,)
    scale = 1 + size**4
    assert torch.allclose(found, divergence(t, s), atol=1e-12 * scale)
    assert (found >= -1e-12 * scale).all()
    order = torch.randperm(b, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(divergence(s, s[:, order]), torch.zeros(2, dtype=s.dtype), atol=1e-12 * scale)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@given(seed=st.integers(0, 10**6), shift=st.floats(-5, 5))
def test_divergences_do_not_depend_on_where_the_origin_is(divergence, seed, shift):
    s, t = features(seed, (1, 5, 3)), features(seed + 1, (1, 5, 3)) + 1
    moved = divergence(s + shift, t + shift)
    assert torch.allclose(moved, divergence(s, t), rtol=1e-8)


@given(seed=st.integers(0, 10**6))
def test_mmd_does_not_depend_on_the_axes(seed):
    s, t = features(seed, (1, 5, 3)), features(seed + 1, (1, 6, 3)) + 1
    turn = torch.linalg.qr(features(seed + 2, (3, 3))).Q
    assert torch.allclose(mmd(s @ turn, t @ turn), mmd(s, t), rtol=1e-8)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_each_replica_is_what_it_is_alone(divergence):
    s, t = features(0, (3, 6, 4)), features(1, (3, 5, 4))
    alone = torch.cat([divergence(s[r : r + 1], t[r : r + 1]) for r in range(3)])
    assert torch.allclose(divergence(s, t), alone, rtol=1e-12)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradients_in_both_batches_are_those_of_finite_differences(divergence):
    s, t = features(0, (2, 4, 3)).requires_grad_(), (features(1, (2, 5, 3)) + 1).requires_grad_()
    assert torch.autograd.gradcheck(divergence, (s, t))


def test_gradients_are_finite_where_rows_coincide():
    s = torch.ones(1, 4, 3).requires_grad_()
    for divergence in DIVERGENCES:
        (gradient,) = torch.autograd.grad(divergence(s, torch.ones(1, 4, 3)).sum(), s)
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_single_precision_keeps_the_narrowest_kernel():
    """Rows far from the origin and close to each other: expanded squares would round the distances away."""
    s, t = 100 + 0.01 * features(0, (1, 8, 16)), 100 + 0.01 * features(1, (1, 8, 16)) + 0.01
    exact = mmd(s, t)
    # The offset's own rounding, 4e-6, is what is left.
    assert torch.allclose(mmd(s.float(), t.float()).double(), exact, rtol=2e-3)
