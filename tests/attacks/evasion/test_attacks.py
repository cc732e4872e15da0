"""The runner of evasion attacks and PGD: closed forms, survivors, counts, seeds, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from attacks.evasion import apgd, apgd_t, no_perturbation, pgd, random_noise, transfer_pgd
from attacks.evasion._attack import Radius, perturb, resolve
from attacks.evasion._meter import Meter, frozen
from attacks.evasion._projected import Pgd
from redteam.core.context import Limits
from redteam.core.errors import ConfigError, LimitReachedError, RedteamError
from redteam.learn.perturb import Ball, lengths
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

OURS = [(pgd, {}), (pgd, {"loss": "kl"}), (apgd, {"steps": 12}), (apgd_t, {"steps": 8, "targets": 2}),
        (random_noise, {"steps": 3}), (no_perturbation, {}), (transfer_pgd, {"loss": "margin"})]  # fmt: skip


def away(network: Linear, labels: np.ndarray) -> torch.Tensor:
    """(n, D): the direction in pixels in which each label's lead falls, for two classes."""
    other = network.weight[1] - network.weight[0]
    return torch.stack([other if label == 0 else -other for label in labels]).detach()


# ---------------------------------------------------------------- closed forms


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_pgd_on_a_linear_network_is_the_closed_form_linf(loss):
    network, images, labels = two_class()
    target = fake(network, images, labels, classes=2, eps=0.12)
    found = run(transfer_pgd, target, loss=loss)
    expected = target.x() + 0.12 * away(network, labels).sign().view(-1, 1, 4, 4)
    assert torch.allclose(torch.from_numpy(found.images), expected, atol=1e-6)


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_pgd_on_a_linear_network_is_the_closed_form_l2(loss):
    network, images, labels = two_class()
    target = fake(network, images, labels, classes=2, norm="L2", eps=0.3)
    found = run(transfer_pgd, target, loss=loss, random_start=False)
    w = away(network, labels)
    expected = target.x() + 0.3 * (w / w.norm(dim=1, keepdim=True)).view(-1, 1, 4, 4)
    assert torch.allclose(torch.from_numpy(found.images), expected, atol=1e-5)
    # From a random point of the ball too, if its steps are long enough to forget the start.
    near = torch.from_numpy(run(transfer_pgd, target, loss=loss, steps=20, step=0.3).images)
    assert torch.allclose(near, expected, atol=1e-5)


@pytest.mark.parametrize(("norm", "dual"), [("Linf", 1), ("L2", 2)])
@pytest.mark.parametrize("module", [pgd, apgd, apgd_t])
def test_accuracy_on_a_linear_network_is_the_margin_condition(module, norm, dual):
    network, images, labels = two_class(n=200)
    radii = (0.02, 0.05, 0.15) if norm == "Linf" else (0.05, 0.2, 0.45)
    target = fake(network, images, labels, classes=2, norm=norm, eps=radii[1])
    knobs = {"random_start": False} if module is pgd else {}
    found = run(module, target, curve=(radii[0], radii[2]), steps=60, **knobs)
    logits = network(target.x()).detach()
    lead = (logits[:, 0] - logits[:, 1]).abs()
    size = torch.linalg.vector_norm(away(network, labels), ord=dual, dim=1)
    expected = [float((lead > r * size).float().mean()) for r in radii]
    assert expected[0] > expected[1] > expected[2]
    assert np.allclose(robust(found)[0], expected)
    assert np.array_equal(found.eps, radii) and found.main == radii[1]


@given(
    seed=st.integers(0, 10_000), eps=st.sampled_from([0.0, 1e-3, 0.03, 0.3, 0.9, 5.0]),
    norm=st.sampled_from(["Linf", "L2"]), classes=st.integers(2, 6), which=st.integers(0, len(OURS) - 1),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
)  # fmt: skip
def test_images_stay_in_ball_and_box_and_fool_the_network(seed, eps, norm, classes, which, scale):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (9, 5, 5, 1)).astype(np.uint8)
    weight = torch.from_numpy(rng.standard_normal((classes, 25)) * scale).float()
    network = Linear(weight)
    target = fake(network, images, rng.integers(0, classes, 9), classes=classes, norm=norm, eps=eps)
    module, knobs = OURS[which]
    found = run(module, target, **knobs)
    moved, row = torch.from_numpy(found.images), found.where[:, 2]
    x = target.x()[row]
    assert moved.isfinite().all() and (moved >= 0).all() and (moved <= 1).all()
    assert (lengths(moved - x, norm) <= eps * (1 + 1e-5) + 1e-6).all()
    wrong = (network(moved).argmax(-1) != target.y()[row]).numpy()
    fell = found.broken[0, 0, row] >= 0
    assert wrong[fell].all()
    clean = (network(target.x()).argmax(-1) != target.y()).numpy()
    assert np.array_equal(found.broken[0, 0] == -2, clean)
    if module is not transfer_pgd:
        assert fell.all() and len(row) == (found.broken >= 0).sum()
    else:
        assert np.array_equal(row, np.arange(9))


# ---------------------------------------------------------------- the runner


def push(direction: float, seen: list[int]):
    """An attempt that adds `direction` to every pixel and notes how many images it was given."""

    def attempt(net, x, y, ball, seeds):
        seen.append(len(x))
        return x + direction

    return attempt


def bright(threshold: float = 0.5) -> Function:
    """Class 1 where the mean is above the threshold."""
    return Function(lambda x: torch.stack([x.mean((1, 2, 3)) * 0 + threshold, x.mean((1, 2, 3))], dim=1) * 50)


def levels(*grey_levels: int) -> np.ndarray:
    return np.stack([np.full((4, 4, 1), g, np.uint8) for g in grey_levels])


def test_each_attempt_meets_survivors_alone_and_every_radius_is_by_itself():
    images, labels = levels(60, 110, 120, 140, 150, 240), np.array([0, 0, 0, 1, 0, 1])
    target = fake(bright(), images, labels, classes=2)
    seen: list[int] = []
    config = resolve(Radius(eps=0.1, curve=("2/255",)), target)
    found = perturb(target, config, context(), {"up": push(0.05, seen), "down": push(-0.3, seen)})
    # The fifth is wrong by itself. Up by 2/255: none falls; by 0.05: the third. Down: the fourth.
    assert seen == [5, 5, 5, 4]
    assert found.attacks == ("up", "down") and found.eps.tolist() == [2 / 255, 0.1]
    assert found.broken[0].tolist() == [[-1, -1, -1, -1, -2, -1], [-1, -1, 0, 1, -2, -1]]
    assert found.where.tolist() == [[0, 1, 2], [0, 1, 3]]
    assert np.allclose(found.images[0], 120 / 255 + 0.05, atol=1e-6)
    assert np.allclose(found.images[1], 140 / 255 - 0.1, atol=1e-6)
    # One clean answer, and one check for each attempt that an example met.
    assert found.forwards[0, 1].tolist() == [3, 3, 2, 3, 1, 3] and found.backwards.sum() == 0
    assert found.notes["spent"] == {"up": [1, 0], "down": [1, 0]}


def test_a_radius_of_the_curve_is_what_it_is_as_the_main_one():
    target = digits()
    both = run(pgd, at(target, norm="Linf", eps=0.1, n=150), curve=(0.05,), steps=5)
    alone = run(pgd, at(target, norm="Linf", eps=0.05, n=150), steps=5)
    assert np.array_equal(both.broken[:, 0], alone.broken[:, 0])
    assert np.array_equal(both.images[both.where[:, 1] == 0], alone.images)


@pytest.mark.parametrize(("module", "knobs"), OURS, ids=lambda v: getattr(v, "__name__", None))
def test_counts_are_what_the_network_saw(module, knobs):
    found, images, gradients = counted(module, **knobs)
    assert found.forwards.sum() == images and found.backwards.sum() == gradients
    wrong = found.broken == -2
    assert wrong.any() and (found.forwards[~wrong] > 1).all()
    if module is not transfer_pgd:
        assert (found.forwards[wrong] == 1).all() and (found.backwards[wrong] == 0).all()
    if module is pgd:
        assert set(found.backwards[~wrong].tolist()) == {20}
    if module is apgd:
        lived = found.broken == -1
        assert set(found.backwards[lived].tolist()) == {12}
        assert (found.backwards[found.broken >= 0] <= 12).all()


def test_restarts_run_on_survivors_and_break_no_fewer():
    target = at(digits(), norm="Linf", eps=0.1)
    one, three = run(pgd, target, steps=3), run(pgd, target, steps=3, restarts=3)
    assert set(np.unique(three.backwards)) <= {0, 3, 6, 9} and (three.backwards == 9).any()
    # The first of three is the one of one: same stream.
    assert (three.broken[one.broken == 0] == 0).all() and robust(three) < robust(one)


def test_a_step_that_is_given_grows_with_the_radius():
    config = Pgd(eps=0.1, step=0.02, curve=(0.2,))
    assert config.length(0.1) == 0.02 and config.length(0.2) == pytest.approx(0.04)
    assert Pgd(eps=0.1, steps=10).length(0.2) == pytest.approx(0.05)
    assert Pgd(eps=0.0, step=0.02).length(0.0) == 0.02


def test_every_image_is_kept_where_the_attack_is_to_be_replayed():
    target = at(digits(), norm="L2", eps=0.5, n=120)
    found, met = run(transfer_pgd, target, curve=(0.2,)), run(pgd, target)
    assert found.where[:, 2].tolist() == [*range(120), *range(120)]
    assert (found.broken == -2).any()
    assert (lengths(torch.from_numpy(found.images[120:]) - target.x(), "L2") > 0).all()
    assert abs(robust(found)[0, 1] - robust(met)[0, 0]) < 0.05


def test_victims_are_attacked_one_by_one():
    network, images, labels = two_class()
    other = Linear(-network.weight.detach())
    found = run(pgd, fake([network, other], images, labels, classes=2, eps=0.3))
    assert found.victims == 2 and (found.broken[1] == -2).all()
    assert set(found.where[:, 0]) == {0} and (found.forwards[1] == 1).all()


@pytest.mark.parametrize(("module", "knobs"), OURS, ids=lambda v: getattr(v, "__name__", None))
def test_same_seed_same_bytes_and_nothing_is_left_changed(module, knobs, tmp_path):
    target = at(digits(), norm="L2", eps=0.5, n=60)
    network = target.networks[0]
    before = [p.detach().clone() for p in network.parameters()]
    torch.rand(3)
    state = torch.get_rng_state()
    made = [run(module, target, context(seed), **knobs) for seed in (0, 0, 1)]
    one, again, other = (artifact.save(tmp_path / "a.npz") for artifact in made)
    assert one == again and (one != other) == (module is not no_perturbation)
    assert torch.equal(torch.get_rng_state(), state)
    for p, old in zip(network.parameters(), before, strict=True):
        assert p.requires_grad and p.grad is None and torch.equal(p, old)


def test_parameters_that_were_frozen_stay_frozen_also_after_an_error():
    network = Linear(torch.randn(2, 4, generator=torch.Generator().manual_seed(0)))
    network.bias.requires_grad_(False)
    with pytest.raises(ValueError), frozen(network):
        assert not any(p.requires_grad for p in network.parameters())
        raise ValueError
    assert network.weight.requires_grad and not network.bias.requires_grad


def test_a_run_that_is_stopped_goes_on_where_it_was(tmp_path):
    target = at(digits(), norm="Linf", eps=0.1, n=80)
    config, calls = resolve(Pgd(curve=(0.05,), steps=4), target), []

    def attempts(stops: bool):
        def second(net, x, y, ball, seeds):
            calls.append(ball.eps)
            if stops and ball.eps == 0.1:
                raise LimitReachedError("stopped")
            return ball.start(x, lambda shape: torch.rand(shape, generator=seeds.torch()))

        return {"first": pgd.attempt(config), "second": second}

    whole = perturb(target, config, context(), attempts(False))
    calls.clear()
    ctx = context(run_dir=tmp_path)
    with pytest.raises(LimitReachedError):
        perturb(target, config, ctx, attempts(True))
    assert calls == [0.05, 0.1]
    again = perturb(target, config, ctx, attempts(False))
    assert calls == [0.05, 0.1, 0.1]
    for name in ("broken", "images", "where", "forwards", "backwards"):
        assert np.array_equal(getattr(again, name), getattr(whole, name)), name
    assert again.notes == whole.notes


def test_the_time_limit_holds_inside_an_attempt():
    ctx = context(limits=Limits(wall_s=0.0))
    meter = Meter(digits().networks[0], 1, ctx.limits)
    with pytest.raises(LimitReachedError):
        meter(torch.zeros(1, 1, 8, 8))


# ---------------------------------------------------------------- what attacks show of each other


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.1), ("L2", 0.5)])
def test_random_noise_is_weaker_than_pgd_and_breaks_little(norm, eps):
    target = at(digits(), norm=norm, eps=eps)
    noise, ascent, still = (run(m, target).broken[0, 0] for m in (random_noise, pgd, no_perturbation))
    assert (still == -1).sum() == (still != -2).sum(), "a deterministic network answers twice alike"
    only_pgd = int(((ascent == 0) & (noise == -1)).sum())
    only_noise = int(((noise == 0) & (ascent == -1)).sum())
    assert binomtest(only_pgd, only_pgd + only_noise, alternative="greater").pvalue < 1e-6
    assert (noise == 0).mean() < 0.1 < (ascent == 0).mean()


def test_random_noise_keeps_the_worst_point():
    network, images, labels = two_class()
    target = fake(network, images, labels, classes=2, eps=0.05)
    few, many = (robust(run(random_noise, target, steps=n))[0, 0] for n in (1, 100))
    assert many < few


# ---------------------------------------------------------------- edges


@pytest.mark.parametrize(("module", "knobs"), OURS, ids=lambda v: getattr(v, "__name__", None))
def test_a_ball_of_radius_0_moves_nothing(module, knobs):
    target = at(digits(), norm="L2", eps=0.0, n=20)
    found = run(module, target, **knobs)
    assert not (found.broken >= 0).any() and found.main == 0.0
    assert np.array_equal(found.images, target.x()[found.where[:, 2]].numpy())


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_few_classes(classes, norm):
    target = at(digits(classes), norm=norm, eps=0.2 if norm == "Linf" else 1.0, n=80)
    for module, knobs in OURS:
        found = run(module, target, **knobs)
        if module is apgd_t:
            assert found.notes["loss"] == "margin" and found.notes["targets"] == min(2, classes - 1)
        if module in (pgd, apgd, apgd_t) and not knobs.get("loss"):
            assert (found.broken >= 0).any()
    assert run(apgd_t, at(digits(), norm=norm, eps=0.1, n=5), steps=2).notes["loss"] == "dlr"


def test_no_example_that_the_network_gets_right():
    network, images, labels = two_class()
    for module, knobs in OURS:
        found = run(module, fake(network, images, 1 - labels, classes=2), **knobs)
        assert (found.broken == -2).all() and found.notes["spent"] == {}
        assert len(found.images) == (len(images) if module is transfer_pgd else 0)


def test_no_example_at_all():
    network, images, labels = two_class()
    found = run(pgd, fake(network, images[:0], labels[:0], classes=2))
    assert found.broken.shape == (1, 1, 0) and found.images.shape == (0, 1, 4, 4)


@pytest.mark.parametrize("module", [pgd, apgd, random_noise])
def test_a_network_that_gives_nan_is_refused_wherever_it_does(module):
    images, labels = levels(120, 140), np.array([0, 1])
    nan = Function(lambda x: bright()(x) * float("nan"))
    with pytest.raises(RedteamError, match="NaN logits for the clean images"):
        run(module, fake(nan, images, labels, classes=2))
    # Numbers on the clean images, NaN a little off: no example may count as broken, nor as survived.
    off = Function(lambda x: bright()(x) + torch.where(x.amax((1, 2, 3)) > 0.56, float("nan"), 0.0)[:, None])
    with pytest.raises(RedteamError, match="NaN logits for images of"):
        run(module, fake(off, images, labels, classes=2))


def test_gradients_that_are_nan_are_refused():
    def root(x: torch.Tensor) -> torch.Tensor:
        return bright()(x) + (x - x.detach()).abs().sum((1, 2, 3)).sqrt()[:, None]

    with pytest.raises(RedteamError, match="infinite gradients for images of pgd"):
        run(pgd, fake(Function(root), levels(100, 180), np.array([0, 1]), classes=2))


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("module", [pgd, apgd])
def test_gradients_that_are_infinite_are_refused(module, norm):
    """Finite logits whose slope is beyond float32."""

    def steep(x: torch.Tensor) -> torch.Tensor:
        rise = (x - x.detach()).sum((1, 2, 3))[:, None] * 1e30
        return bright()(x) + rise * torch.tensor([0.0, 1e30])

    target = fake(Function(steep), levels(60, 200), np.array([0, 1]), classes=2, norm=norm)
    with pytest.raises(RedteamError, match="infinite gradients"):
        run(module, target)


def test_a_network_without_gradients_is_refused_by_white_box_attacks_alone():
    network = Function(lambda x: bright()(x).detach())
    target: FakeTarget = fake(network, levels(100, 180), np.array([0, 1]), classes=2)
    for module in (pgd, apgd, apgd_t):
        with pytest.raises(ConfigError, match="without a gradient.*square"):
            run(module, target)
    assert robust(run(random_noise, target)) == 1.0


def test_logits_that_do_not_fit_the_classes_are_refused():
    network, images, labels = two_class()
    with pytest.raises(ConfigError, match=r"expected logits \(60, 3\).*got \(60, 2\)"):
        run(pgd, fake(network, images, labels, classes=3))


def test_resolve_takes_the_targets_ball_unless_told_otherwise():
    network, images, labels = two_class()
    target = fake(network, images, labels, classes=2, norm="L2", eps=0.25)
    config = resolve(Pgd(curve=("1/4", 0.5, "4/8")), target)
    assert (config.norm, config.eps, config.curve) == ("L2", 0.25, (0.5,))
    config = resolve(Pgd(norm="Linf", eps="8/255"), target)
    assert (config.norm, config.eps, config.curve) == ("Linf", 8 / 255, ())
    assert resolve(config, target) == config


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"eps": "a lot"}, "eps: expected a radius"), ({"curve": (0.1, "-1")}, "eps: expected a radius"),
        ({"norm": "L1"}, "norm: expected one of auto, Linf, L2"),
        ({"loss": "kl", "random_start": False}, "random_start"),
        ({"restarts": 2, "random_start": False}, "random_start"), ({"steps": 0}, "steps: expected at least 1"),
        ({"step": 0.0}, "step: expected more than 0"), ({"batch": 0}, "batch: expected at least 1"),
    ],
)  # fmt: skip
def test_knobs_that_make_no_sense(knobs, message):
    with pytest.raises(ConfigError, match=message):
        Pgd(**knobs)


def test_kl_is_measured_from_the_clean_answer_not_from_the_label():
    """On a linear network of two classes, KL grows on both sides: half of the starts run away from the boundary."""
    network, _, _ = two_class()
    images = grey(40)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    labels = network(x).argmax(-1).numpy()
    target = fake(network, images, labels, classes=2, eps=0.1)
    w = away(network, labels)
    found = torch.from_numpy(run(transfer_pgd, target, loss="kl").images)
    toward = ((found - x).flatten(1) * w).sum(1) / (0.1 * w.abs().sum(1))
    assert torch.allclose(toward.abs(), torch.ones(40), atol=1e-4)
    assert 0.2 < float((toward > 0).float().mean()) < 1.0


def test_ball_of_the_runner_is_the_configured_one():
    seen: list[Ball] = []

    def attempt(net, x, y, ball, seeds):
        seen.append(ball)
        return x

    target = at(digits(), norm="Linf", eps=0.1, n=5)
    perturb(target, resolve(Radius(norm="L2", eps=0.5), target), context(), {"see": attempt})
    assert seen == [Ball("L2", 0.5)]
