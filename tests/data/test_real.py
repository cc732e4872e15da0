"""The real sets, as far as REDTEAM_DATA holds them."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from redteam.data import load
from redteam.data.facts import channel_stats

pytestmark = pytest.mark.data


def _need(root: Path, folder: str) -> None:
    if not (root / folder).is_dir():
        pytest.skip(f"no {folder} in REDTEAM_DATA")


def test_cifar10(real_data: Path) -> None:
    _need(real_data, "cifar10")
    data = load("cifar10", data_dir=str(real_data), offline=True)
    assert data.train.images.shape == (50_000, 32, 32, 3) and data.test.images.shape == (10_000, 32, 32, 3)
    assert np.bincount(data.train.labels).tolist() == [5000] * 10
    assert data.name == "cifar10-jpeg" and "lossy JPEG" in data.source
    mean, _ = channel_stats(data.train.images)
    assert np.allclose(mean, data.facts.mean, atol=0.002)
    started = time.perf_counter()
    again = load("cifar10", data_dir=str(real_data), offline=True)
    assert again.digest == data.digest
    assert time.perf_counter() - started < 15


def test_mnist_states_that_it_is_partial(real_data: Path) -> None:
    _need(real_data, "mnist")
    data = load("mnist", data_dir=str(real_data), offline=True)
    assert data.test.images.shape == (10_000, 28, 28, 1)
    if len(data.train) < 60_000:
        assert f"{len(data.train):,} of 60,000 training" in data.source


def test_usps(real_data: Path) -> None:
    _need(real_data, "usps")
    data = load("usps", data_dir=str(real_data), offline=True)
    assert data.train.images.shape == (7_291, 16, 16, 1) and len(data.test) == 2_007
    mean, std = channel_stats(data.train.images)
    assert np.allclose((*mean, *std), (*data.facts.mean, *data.facts.std), atol=0.003)


def test_fashion_mnist(real_data: Path) -> None:
    _need(real_data, "FashionMNIST")
    data = load("fashion-mnist", data_dir=str(real_data), offline=True)
    assert data.train.images.shape == (60_000, 28, 28, 1) and len(data.test) == 10_000
    assert (data.facts.mean, data.facts.std) == channel_stats(data.train.images)
