"""The contract of everything that is installed, and what holds of this package's own plug-ins."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest

from redteam.core import registry
from redteam.core.errors import ArtifactError, BudgetExceededError, UnknownNameError
from redteam.testing import contract
from redteam.testing.contract import *  # noqa: F403

ROOT = Path(__file__).parents[1]
FLIPS = registry.get("attack", "random-flips")


def test_every_source_key_is_in_the_bibliography():
    known = (ROOT / "docs" / "bibliography.md").read_text()
    for kind, group in registry.GROUPS.items():
        for entry in entry_points(group=group):
            if entry.dist is not None and entry.dist.name == "redteam":
                source = registry.get(kind, entry.name).source
                assert f"| {source} |" in known, f"{entry.name}: {source}"


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown attack 'random-flip'. Did you mean 'random-flips'"):
        registry.get("attack", "random-flip")


def run_that(spoil):
    """Random flips whose run is spoilt: `(target, artifact) -> artifact`."""
    return replace(FLIPS, run=lambda target, config, ctx: spoil(target, FLIPS.run(target, config, ctx)))


def darkened(target, artifact):
    target.train.images[0] = 0
    return artifact


def one_more(target, artifact):
    labels = artifact.targets.copy()
    labels[np.flatnonzero(labels == target.train.labels)[0]] = (labels[0] + 1) % 3
    return replace(artifact, targets=labels)


def drawn_elsewhere(target, artifact):
    labels = artifact.targets[np.random.default_rng().permutation(len(artifact.targets))]
    return replace(artifact, targets=labels, budget=len(labels))


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (darkened, AssertionError, "leaves its inputs as they were"),
        (one_more, BudgetExceededError, "changes 7 training rows; its budget is 6"),
        (drawn_elsewhere, AssertionError, "same seed, same bytes"),
        (lambda target, artifact: target, ArtifactError, "expected an artifact of kind 'poison'"),
    ],
    ids=["inputs", "budget", "seed", "artifact"],
)
def test_the_contract_finds_an_attack_that_breaks_it(spoil, error, message, monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "get", lambda kind, name: run_that(spoil) if name == "spoilt" else None)
    with pytest.raises(error, match=message):
        contract.test_attack("spoilt", tmp_path)
