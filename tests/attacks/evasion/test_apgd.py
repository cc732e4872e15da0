"""Auto-PGD: its schedule, its losses, and agreement with the authors' code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attacks.evasion import apgd, apgd_t, pgd
from attacks.evasion._apgd import checkpoints, start, targeted_dlr, targeted_margin, untargeted_ce
from redteam.core.seeding import SeedPath
from redteam.learn.perturb import Ball, lengths
from tests.attacks.evasion.toys import at, context, digits, robust, run


def test_checkpoints_by_hand():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(20) == [4, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]
    assert checkpoints(1) == [1]


@given(steps=st.integers(1, 400))
def test_checkpoints_come_closer_and_never_closer_than_the_least(steps):
    marks = [0, *checkpoints(steps)]
    periods = np.diff(marks)
    assert marks[-1] <= steps and (np.diff(periods) <= 0).all()
    assert (periods >= max(int(0.06 * steps), 1)).all() and periods[0] == max(int(0.22 * steps), 1)


def test_losses_by_hand():
    logits = torch.tensor([[3.0, 1.0, 0.0, -2.0, 5.0]])
    y, other = torch.tensor([0]), torch.tensor([1])
    # Sorted: 5, 3, 1, 0, -2. DLR: (1 - 3) / (5 - (1 + 0) / 2).
    assert targeted_dlr(logits, y, other).item() == pytest.approx(-2 / 4.5)
    assert targeted_margin(logits, y, other).item() == -2.0
    assert untargeted_ce(logits, y, other).item() == pytest.approx(-logits.log_softmax(-1)[0, 0].item())


@given(
    seed=st.integers(0, 1000),
    scale=st.floats(0.01, 100),
    shift=st.floats(-50, 50),
    classes=st.integers(4, 12),
)
def test_dlr_knows_neither_shift_nor_scale_of_the_logits(seed, scale, shift, classes):
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.standard_normal((5, classes)))
    y = torch.from_numpy(rng.integers(0, classes, 5))
    other = (y + 1) % classes
    plain, moved = targeted_dlr(logits, y, other), targeted_dlr(logits * scale + shift, y, other)
    assert torch.allclose(plain, moved, rtol=1e-5, atol=1e-8)


@given(seed=st.integers(0, 1000), eps=st.floats(0, 2), norm=st.sampled_from(["Linf", "L2"]))
def test_it_starts_on_the_sphere(seed, eps, norm):
    moved = start(torch.full((4, 1, 6, 6), 0.5), Ball(norm, eps), SeedPath(seed).torch())
    size = lengths(moved - 0.5, norm)
    inside = (moved > 0).flatten(1).all(1) & (moved < 1).flatten(1).all(1)
    assert (size <= eps + 1e-6).all() and torch.allclose(size[inside], torch.tensor(eps), atol=1e-6)


SETTINGS = [("Linf", 0.1), ("L2", 0.5), ("L2", 0.7)]


def compared(module, knobs, theirs, norm, eps, seed):
    """Robust accuracy of ours and theirs on the same network, images and seed, and how many examples differ."""
    base = pytest.importorskip("pyautoattack.autopgd_base")
    target, ctx = at(digits(), norm=norm, eps=eps), context(seed)
    network, x, y = target.networks[0], target.x(), target.y()
    found = run(module, target, ctx, batch=1000, **knobs)
    ours = found.broken[0, 0]
    right = torch.from_numpy(ours != -2)
    stream = ctx.seeds.child(0, repr(eps), found.attacks[0], 0).integer()
    with torch.random.fork_rng(devices=[]):
        moved = theirs(base, network, norm, eps, stream).perturb(x[right].clone(), y[right].clone())
    lived = (network(moved).argmax(-1) == y[right]).numpy()
    return (ours == -1).mean(), lived.sum() / len(y), int((lived != (ours[right.numpy()] == -1)).sum())


@pytest.mark.parametrize(("norm", "eps"), SETTINGS)
@pytest.mark.parametrize("seed", [0, 1])
def test_apgd_ce_agrees_with_the_authors_code(norm, eps, seed):
    ours, theirs, other = compared(
        apgd, {"steps": 100},
        lambda base, network, norm, eps, stream: base.APGDAttack(network, n_iter=100, norm=norm, eps=eps, seed=stream),
        norm, eps, seed,
    )  # fmt: skip
    assert 0.2 < theirs < 0.8, "an eps at which accuracy tells anything"
    assert abs(ours - theirs) <= 0.005 and other <= 4


@pytest.mark.parametrize(("norm", "eps"), SETTINGS[:2])
def test_apgd_t_agrees_with_the_authors_code(norm, eps):
    ours, theirs, other = compared(
        apgd_t, {"steps": 30, "targets": 3},
        lambda base, network, norm, eps, stream: base.APGDAttack_targeted(
            network, n_iter=30, norm=norm, eps=eps, seed=stream, n_target_classes=3
        ),
        norm, eps, 0,
    )  # fmt: skip
    assert 0.2 < theirs < 0.8 and abs(ours - theirs) <= 0.005 and other <= 4


@pytest.mark.parametrize(("norm", "eps"), SETTINGS)
def test_apgd_is_no_weaker_than_pgd_of_as_many_steps(norm, eps):
    target = at(digits(), norm=norm, eps=eps)
    auto, plain = robust(run(apgd, target, steps=40)), robust(run(pgd, target, steps=40))
    assert auto <= plain + 0.005


def test_more_targets_break_no_fewer():
    target = at(digits(), norm="Linf", eps=0.1)
    one, nine = (run(apgd_t, target, steps=10, targets=n) for n in (1, 9))
    assert (nine.broken[one.broken == 0] == 0).all() and robust(nine) < robust(one)
    assert nine.notes["targets"] == 9 and run(apgd_t, target, steps=1, targets=50).notes["targets"] == 9


def test_an_example_that_is_fooled_is_left_aside():
    found = run(apgd, at(digits(), norm="L2", eps=1.0), steps=50)
    fell = found.broken[0, 0] == 0
    took = found.backwards[0, 0][fell]
    assert np.median(took) < 10 and took.max() <= 50
