"""FAB and Square by their authors' code, behind our interface: the same images, exact counts, and what is refused."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks.evasion import fab, pgd, square
from redteam.core.errors import ConfigError
from redteam.learn.perturb import lengths
from tests.attacks.evasion.toys import (
    FakeTarget,
    Function,
    Linear,
    at,
    context,
    counted,
    digits,
    fake,
    grey,
    robust,
    run,
    two_class,
)

pytest.importorskip("pyautoattack")
BOTH = [(fab, {"steps": 6, "targets": 3}), (square, {"queries": 60})]


def theirs(module, network, norm, eps, stream):
    """The library's attack with the knobs of BOTH."""
    if module is fab:
        from pyautoattack.fab_pt import FABAttack_PT

        knobs = {"n_iter": 6, "targeted": True, "n_target_classes": 3}
        return FABAttack_PT(network, norm=norm, eps=eps, seed=stream, **knobs)
    from pyautoattack.square import SquareAttack

    return SquareAttack(network, n_queries=60, norm=norm, eps=eps, seed=stream)


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.1), ("L2", 0.5)])
@pytest.mark.parametrize(("module", "knobs"), BOTH, ids=["fab", "square"])
def test_the_images_are_the_librarys_own(module, knobs, norm, eps):
    target, ctx = at(digits(), norm=norm, eps=eps), context(3)
    network, x, y = target.networks[0], target.x(), target.y()
    found = run(module, target, ctx, batch=1000, **knobs)
    right = found.broken[0, 0] != -2
    stream = ctx.seeds.child(0, repr(eps), found.attacks[0], 0).integer()
    with torch.random.fork_rng(devices=[]):
        moved = theirs(module, network, norm, eps, stream).perturb(x[right].clone(), y[right].clone())
    fell = (network(moved).argmax(-1) != y[right]).numpy()
    assert fell.any() and not fell.all()
    assert np.array_equal(found.broken[0, 0][right] == 0, fell)
    # Projected afterwards, which moves them by rounding alone.
    assert np.allclose(found.images, moved[fell].numpy(), atol=2e-7)


@pytest.mark.parametrize(("module", "knobs"), BOTH, ids=["fab", "square"])
def test_counts_are_what_the_network_saw(module, knobs):
    found, images, gradients = counted(module, **knobs)
    assert found.forwards.sum() == images and found.backwards.sum() == gradients
    lived, wrong = found.broken == -1, found.broken == -2
    assert (found.forwards[wrong] == 1).all()
    if module is square:
        # The clean answer, the first point, the queries, the check.
        assert set(found.forwards[lived].tolist()) == {1 + 1 + 60 + 1} and not found.backwards.any()
        assert found.forwards[found.broken == 0].max() <= 63
    else:
        assert set(found.forwards[lived].tolist()) == {1 + 3 * (2 * 6 + 3) + 1}
        assert set(found.backwards[lived].tolist()) == {18}


@pytest.mark.parametrize(("module", "knobs"), BOTH, ids=["fab", "square"])
def test_seeds_and_the_global_generator(module, knobs):
    target = at(digits(), norm="L2", eps=0.6, n=100)
    state = torch.get_rng_state()
    one, again, other = (run(module, target, context(s), **knobs) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(one.images, again.images)
    # FAB draws nothing in its first run.
    alike = one.images.shape == other.images.shape and np.array_equal(one.images, other.images)
    assert alike == (module is fab)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 1000), eps=st.sampled_from([0.0, 0.03, 0.3, 3.0]), norm=st.sampled_from(["Linf", "L2"]),
    classes=st.integers(2, 5), which=st.integers(0, 1), size=st.sampled_from([5, 8, 9]),
)  # fmt: skip
def test_images_stay_in_ball_and_box_and_fool_the_network(seed, eps, norm, classes, which, size):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (7, size, size, 1)).astype(np.uint8)
    network = Linear(torch.from_numpy(rng.standard_normal((classes, size * size))).float())
    target = fake(network, images, rng.integers(0, classes, 7), classes=classes, norm=norm, eps=eps)
    module, knobs = BOTH[which]
    found = run(module, target, **{k: min(v, 20) for k, v in knobs.items()})
    moved, row = torch.from_numpy(found.images), found.where[:, 2]
    assert moved.isfinite().all() and (moved >= 0).all() and (moved <= 1).all()
    assert (lengths(moved - target.x()[row], norm) <= eps * (1 + 1e-5) + 1e-6).all()
    assert (network(moved).argmax(-1) != target.y()[row]).all() and (found.broken[0, 0, row] == 0).all()


@pytest.mark.parametrize(("norm", "dual"), [("Linf", 1), ("L2", 2)])
def test_fab_on_a_linear_network_finds_what_the_margin_condition_says(norm, dual):
    network, images, labels = two_class(n=200, size=5)
    eps = 0.05 if norm == "Linf" else 0.2
    found = run(fab, fake(network, images, labels, classes=2, norm=norm, eps=eps), steps=30)
    logits = network(fake(network, images, labels, classes=2).x()).detach()
    need = (logits[:, 0] - logits[:, 1]).abs() / torch.linalg.vector_norm(
        network.weight[0] - network.weight[1], ord=dual
    ).detach()
    fell = found.broken[0, 0] == 0
    # It stops a little beyond the boundary, so the narrowest successes may be missed and no other.
    assert not fell[(need > eps).numpy()].any() and fell[(need < 0.97 * eps).numpy()].all()
    assert found.notes["targets"] == 1


def test_a_vanished_gradient_makes_fab_find_nothing_and_break_nothing():
    flat = Function(lambda x: x.flatten(1)[:, :2] * 0 + torch.tensor([1.0, 0.0]))
    found = run(fab, fake(flat, grey(6), np.zeros(6), classes=2), steps=4)
    assert (found.broken == -1).all()


def test_square_needs_no_gradient_and_breaks_what_masks_it():
    inner = digits().networks[0]
    masked = Function(lambda x: inner(torch.round(x * 32) / 32))
    target = at(replace(digits(), networks=[masked]), norm="Linf", eps=0.12, n=150)
    assert robust(run(square, target, queries=300)) < robust(run(pgd, target)) - 0.1
    hidden = replace(target, networks=[Function(lambda x: masked(x).detach())])
    assert robust(run(square, hidden, queries=60)) < 0.97


def test_square_does_not_write_into_the_networks_own_tensors():
    """It overwrites logits in place; here they are the image's own pixels."""
    identity = Function(lambda x: x.flatten(1))
    images = grey(8, size=5)
    labels = images.reshape(8, -1).argmax(1)
    target = fake(identity, images, labels, classes=25, eps=0.2)
    found = run(square, target, queries=30)
    assert np.isfinite(found.images).all() and (found.broken == 0).any()


def test_square_refuses_what_its_code_cannot_do():
    network, images, labels = two_class(size=4)
    with pytest.raises(ConfigError, match=r"at least 5 pixels a side in the L2 ball, got \(4, 4\)"):
        run(square, fake(network, images, labels, classes=2, norm="L2", eps=0.1), queries=5)


@pytest.mark.parametrize("module", [fab, square])
def test_a_missing_library_names_the_extra(module, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)

    class Untrained(FakeTarget):
        def fit(self, ctx):
            raise AssertionError("the library is looked for before anything is trained")

    network, images, labels = two_class()
    target = Untrained(**vars(fake(network, images, labels, classes=2)))
    with pytest.raises(ConfigError, match=r"pip install 'redteam\[evasion\]'"):
        run(module, target)
