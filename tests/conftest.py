"""Shared fixtures: one torch thread, tiny data sets, tiny targets, and the --run-slow switch."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import settings

from redteam.core.context import Context
from redteam.core.device import Device, set_threads
from redteam.core.seeding import SeedPath
from redteam.data.nouns import ImageDataset
from redteam.data.toys import stripes_dataset
from redteam.threats.poisoning.target import ClassifierConfig, ImageTrainable

# A busy machine is no defect: examples are bounded in number, not in time. They are the same in every run, so that a
# failure comes again where it is looked for; REDTEAM_FUZZ=1 draws new ones.
settings.register_profile(
    "suite", deadline=None, max_examples=50, derandomize=not os.environ.get("REDTEAM_FUZZ")
)
settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="run tests that take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--run-slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="takes minutes; pass --run-slow"))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    set_threads(1)


@pytest.fixture
def dataset() -> ImageDataset:
    return stripes_dataset()


def context(seed: int = 0, **surroundings: Any) -> Context:
    """A run on the CPU. surroundings: a ledger, limits, a stage folder, ..."""
    return Context(Device("cpu"), SeedPath(seed), **surroundings)


@pytest.fixture
def ctx() -> Context:
    return context()


def small_config(**changes: object) -> ClassifierConfig:
    settings: dict[str, object] = {
        "model": "preact-resnet8-s2", "epochs": 3, "batch_size": 32, "schedule": "onecycle", "pad": 0, "flip": False,
    }  # fmt: skip
    return ClassifierConfig(**{**settings, **changes})  # type: ignore[arg-type]


@pytest.fixture
def target(dataset: ImageDataset) -> ImageTrainable:
    return ImageTrainable(dataset.train, dataset.facts, small_config(), Device("cpu"))
