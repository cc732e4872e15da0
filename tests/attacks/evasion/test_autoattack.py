"""The AutoAttack ensemble: its definition, the name it may bear, and survivors between its members."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from attacks.evasion import autoattack
from attacks.evasion.autoattack import SMALL, STANDARD, AutoAttack, due, named
from redteam.core.config import build
from redteam.core.errors import ConfigError
from tests.attacks.evasion.toys import at, context, digits, robust, run

pytest.importorskip("pyautoattack")
ORDER = ("apgd-ce", "apgd-t", "fab-t", "square")


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_definition_is_the_released_codes(norm):
    """The numbers as the authors' own object holds them."""
    from pyautoattack import AutoAttack as Released

    released = Released(torch.nn.Identity(), norm=norm, eps=0.1, version="standard", seed=0)
    assert tuple(released.attacks_to_run) == ORDER == STANDARD["members"]
    for one in (released.apgd, released.apgd_targeted, released.fab):
        assert (one.n_iter, one.n_restarts) == (STANDARD["steps"], STANDARD["restarts"])
    for one in (released.apgd_targeted, released.fab):
        assert one.n_target_classes == STANDARD["targets"]
    assert released.square.n_queries == STANDARD["queries"] and released.square.n_restarts == 1
    assert released.square.rescale_schedule is STANDARD["rescale"] and released.square.p_init == 0.8
    assert (released.fab.alpha_max, released.fab.eta, released.fab.beta) == (0.1, 1.05, 0.9)
    plain = AutoAttack()
    assert {k: getattr(plain, k) for k in STANDARD} == dict(STANDARD) and plain.version == "standard"


@pytest.mark.parametrize(
    "knobs", [{"steps": 99}, {"steps": 10}, {"restarts": 2}, {"targets": 3}, {"queries": 1000}, {"rescale": True},
              {"members": ("apgd-ce", "square")}, {"members": ("square", "fab-t", "apgd-t", "apgd-ce")}],
)  # fmt: skip
def test_the_name_is_refused_with_other_numbers(knobs):
    (name,) = knobs
    with pytest.raises(ConfigError, match=rf"AutoAttack standard means {name}=.*version=custom"):
        AutoAttack(**knobs)
    assert AutoAttack(version="custom", **knobs).name().startswith("custom ensemble: ")
    with pytest.raises(ConfigError, match="AutoAttack standard means steps=100, targets=9"):
        build(AutoAttack, {"version": "standard"}, base=SMALL)


@pytest.mark.parametrize("members", [(), ("square", "square")])
def test_members_are_there_once(members):
    with pytest.raises(ConfigError, match="members: expected each attack once"):
        AutoAttack(version="custom", members=members)


def test_a_custom_ensemble_says_what_it_is():
    target = at(digits(), norm="Linf", eps=0.1, n=200)
    small = {"version": "custom", "steps": 10, "restarts": 2}
    found = run(autoattack, target, **small, targets=2, queries=30, rescale=True)
    members = "apgd-ce 2x10, apgd-t 4x10, fab-t 4x10, square 30 queries"
    assert found.notes["ensemble"] == f"custom ensemble: {members}"
    assert found.attacks == ORDER and found.notes["spent"] == found.notes["due"]
    assert 0.2 < robust(found) < 0.8
    # APGD-CE breaks most, and each later one meets fewer.
    assert (found.broken == 0).sum() > (found.broken > 0).sum()
    first = run(autoattack, target, version="custom", steps=10, restarts=2, members=("apgd-ce",))
    assert np.array_equal(first.broken == 0, found.broken == 0)


def test_what_survivors_took_decides_the_name():
    config, full = AutoAttack(), due(AutoAttack(), 10)
    assert full == {"apgd-ce": [102, 100], "apgd-t": [911, 900], "fab-t": [1828, 900], "square": [5002, 0]}
    assert named(config, 10, full)["ensemble"] == "AutoAttack standard"
    assert named(config, 10, {})["ensemble"] == "AutoAttack standard", "nothing survived to be spared"
    less = named(config, 10, {**full, "square": [4000, 0]})
    assert less["ensemble"].startswith("custom") and "square took less" in less["refused"]
    few = named(config, 3, due(config, 3))
    assert (few["ensemble"], few["targets"], few["loss"]) == ("AutoAttack standard", 2, "margin")
    assert due(config, 3)["apgd-t"] == [204, 200]
    assert "refused" not in named(SMALL, 10, {}) and named(SMALL, 10, full)["ensemble"].startswith("custom")


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_clamp_targets_and_take_the_margin(classes):
    target = at(digits(classes), norm="Linf", eps=0.15, n=40)
    found = run(autoattack, target, version="custom", steps=5, targets=9, queries=10)
    assert found.notes["targets"] == classes - 1 and found.notes["loss"] == "margin"
    assert found.notes["spent"] == found.notes["due"]


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.1), ("L2", 0.5)])
def test_standard_on_digits_is_measured_and_agrees_with_the_released_ensemble(norm, eps):
    from pyautoattack import AutoAttack as Released

    target = at(digits(), norm=norm, eps=eps, n=100)
    found = run(autoattack, target, context(1))
    assert found.notes["ensemble"] == "AutoAttack standard" and found.notes["spent"] == found.notes["due"]
    released = Released(target.networks[0], norm=norm, eps=eps, version="standard", seed=0)
    # Its other checks trace every line.
    released.version = "rand"
    moved, _ = released.run_standard_evaluation(target.x(), target.y(), batch_size=250)
    theirs = (target.networks[0](moved).argmax(-1) == target.y()).float().mean().item()
    assert abs(robust(found)[0, 0] - theirs) <= 0.01


def test_presets():
    presets = autoattack.SPEC.presets
    assert presets["default"].config == presets["paper"].config == AutoAttack()
    assert presets["small"].config.version == presets["smoke"].config.version == "custom"
    assert replace(presets["smoke"].config, steps=7).name() != presets["smoke"].config.name()
