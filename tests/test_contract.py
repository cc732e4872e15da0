"""The contract of everything that is installed, and what holds of this package's own plug-ins."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest

from redteam.core import registry
from redteam.core.config import knobs
from redteam.core.errors import ArtifactError, BudgetExceededError, UnknownNameError
from redteam.core.threat import of_target
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


@pytest.mark.parametrize("reference", ["gcq", "benign"])
def test_attacks_beside_each_other_meet_the_same_targets(reference):
    """Whichever of an attack and its controls runs alone: the presets of these two threats state their targets."""
    first = registry.get("attack", reference)
    every = [registry.get("attack", name) for name in registry.names("attack")]
    specs = [spec for spec in every if spec.threat.kind == first.threat.kind]
    assert len(specs) > 3
    for spec in specs:
        ours, theirs = ({name: dict(p.target) for name, p in s.presets.items()} for s in (first, spec))
        assert ours == theirs, spec.name


def test_a_rule_of_a_server_says_what_it_is_told_and_nothing_else():
    for name, kind in contract.defended_pairs():
        if kind == "federation":
            spec, target = registry.get("defense", name), of_target(kind)
            config = spec.presets["default"].config
            if spec.told:
                config = spec.told(config, target.tiny.told, target.tiny.make(contract.context()))
            told = spec.oracle(config) if callable(spec.oracle) else spec.oracle
            assert bool(told) == (spec.told is not None), name


def test_a_training_is_called_as_its_defence_and_carries_its_settings():
    for name, kind in contract.defended_pairs():
        if kind == "classifier":
            spec, target, ctx = registry.get("defense", name), of_target(kind), contract.context()
            algorithm = spec.run(target.tiny.make(ctx), spec.presets["default"].config, ctx).algorithm
            assert (algorithm.name, set(algorithm.settings)) == (name, set(knobs(spec.config)))


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
