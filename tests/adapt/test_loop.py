"""The loop: replicas, batches, the ramp, validation, selection, pseudo-labels, and what a target refuses."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from redteam.adapt.algorithm import Dann, Erm
from redteam.adapt.config import SELECTORS, DomainConfig
from redteam.adapt.loop import _Deck
from redteam.adapt.select import Keeper
from redteam.adapt.target import DomainTarget, configure, resized
from redteam.context import Context
from redteam.device import Device
from redteam.domain import split
from redteam.errors import ConfigError, TrainingError, UnknownNameError
from redteam.perturb import ce
from redteam.seeding import SeedPath
from tests.adapt.toys import bands, pair, single

TINY = DomainConfig(
    model="digit-cnn-small", size=0, rows=0, steps=12, batch_size=16, check_every=4, val_rows=20, val_steps=2,
    inner_steps=2, critic_width=16, lr=3e-3,
)  # fmt: skip


def context(root: int = 0) -> Context:
    return Context(Device("cpu"), SeedPath(root))


@dataclass(frozen=True)
class Probe:
    """Erm with pseudo-labels; notes the radius and the labels that each update was given."""

    name: str = "probe"
    groups: tuple[str, ...] = ("model",)
    adapts: bool = True
    pseudo: str = "refreshed"
    refresh: str = "latest"
    settings: dict = field(default_factory=dict)
    radii: list = field(default_factory=list)
    labels: list = field(default_factory=list)
    explode: bool = False

    def inner(self, step):
        self.radii.append((step.ball.eps, step.inner_step))
        self.labels.append(step.pseudo.clone())

    def outer(self, step, inner):
        loss = ce(step.nets.logits(step.xs), step.ys).mean(-1)
        yield "model", loss * float("nan") if self.explode else loss


def test_replicas_together_are_each_what_they_are_alone():
    """Same batches, same random starts, same gradients; after many steps of Adam rounding would show."""
    found = {}
    for victims in (1, 2):
        target, ctx = DomainTarget(pair(), replace(TINY, victims=victims)), context()
        loop = target._loop(Dann(), target.split(ctx), ctx)
        step = loop._step(0)
        (_, losses) = [pair_ for pair_ in Dann().outer(step, None) if pair_[0] == "model"][0]
        params = list(loop.nets.params["model"].values())
        found[victims] = step, losses, torch.autograd.grad(losses.sum(), params)
    (one, alone, gradient), (two, both, gradients) = found[1], found[2]
    assert torch.equal(one.xs[0], two.xs[0]) and torch.equal(one.xt[0], two.xt[0])
    assert torch.equal(one.draw(torch.Size((1, 3)))[0], two.draw(torch.Size((2, 3)))[0])
    assert torch.allclose(alone[0], both[0], rtol=1e-5) and not torch.allclose(both[0], both[1], rtol=1e-3)
    for a, b in zip(gradient, gradients, strict=True):
        assert torch.allclose(a[0], b[0], rtol=1e-3, atol=1e-6)


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 5))
def test_a_deck_deals_every_row_once_before_any_twice(n, batch, seed):
    deck = _Deck(n, batch, SeedPath(seed).torch())
    dealt = torch.cat([deck.draw() for _ in range(5)]).tolist()
    for start in range(0, len(dealt) - n + 1, n):
        assert sorted(dealt[start : start + n]) == list(range(n))


def test_the_radius_grows_over_the_ramp_and_the_step_with_it():
    probe = Probe()
    DomainTarget(pair(), replace(TINY, eps_ramp=0.5, eps=0.2), probe).fit(context())
    radii = np.array([r for r, _ in probe.radii])
    assert np.allclose(radii, 0.2 * np.minimum(1, np.arange(1, 13) / 6))
    assert np.allclose([s for _, s in probe.radii], radii / 2)


def test_keeper_takes_the_first_best_of_each_criterion_and_drops_the_rest():
    class Nets:
        def state(self, replica):
            return {"w": torch.zeros(1)}

    keeper = Keeper(1)
    values = {"source_clean": [0.5, 0.9, 0.9], "source_pgd": [0.3, 0.1, 0.2], "oracle": [0.0, 0.0, 0.4]}
    for step in range(3):
        keeper.see(step, {k: np.array([v[step]]) for k, v in values.items()}, Nets())
    assert keeper.chosen == {
        (0, "source-clean"): 1, (0, "source-pgd"): 0, (0, "oracle"): 2, (0, "last"): 2,
    }  # fmt: skip
    assert set(keeper.states) == {(0, 0), (0, 1), (0, 2)}


def test_every_selector_takes_the_best_of_its_own_history():
    target = DomainTarget(pair(), TINY, Dann())
    ctx = context()
    (taken,) = target.selected(ctx)
    history = target.history(ctx)
    assert set(taken) == set(SELECTORS)
    for selector, criterion in (("source-clean", "source_clean"), ("pseudo", "pseudo"), ("oracle", "oracle")):
        rows = [i for i, c in enumerate(history["criterion"]) if c == criterion]
        best = max(rows, key=lambda i: (history["value"][i], -history["step"][i]))
        assert taken[selector].step == history["step"][best]
    assert taken["last"].step == TINY.steps


def test_the_same_seed_gives_the_same_network_and_another_another():
    x = torch.rand(4, 3, 8, 8)
    networks = [DomainTarget(pair(), TINY).fit(context(root))[0].network for root in (0, 0, 1)]
    with torch.no_grad():
        one, two, other = (network(x) for network in networks)
    assert torch.equal(one, two)
    assert not torch.allclose(one, other, atol=1e-2)


def test_a_finished_training_is_read_back_for_another_selector(tmp_path):
    ctx = replace(context(), stage_dir=tmp_path)
    DomainTarget(pair(), TINY, Dann()).fit(ctx)
    again = replace(context(), stage_dir=tmp_path)
    DomainTarget(pair(), replace(TINY, select="oracle"), Dann()).fit(again)
    assert sorted(again.costs.resumed) == ["adapted", "predictor"]


@pytest.mark.parametrize(("pseudo", "refresh", "changes"), [
    ("frozen", "latest", False), ("refreshed", "latest", True),
])  # fmt: skip
def test_pseudo_labels_are_frozen_or_refreshed(pseudo, refresh, changes):
    probe = Probe(pseudo=pseudo, refresh=refresh)
    target = DomainTarget(pair(), TINY, probe)
    parts = target.split(context())
    ctx = context()
    loop = target._loop(probe, parts, ctx, target._predictor(parts, ctx))
    before = loop.pseudo.clone()
    # A predictor that answers one class tells the two rules apart.
    loop.pseudo = torch.zeros_like(before)
    loop.run("probe")
    assert bool((loop.pseudo != 0).any()) == changes


def test_a_refresh_by_source_accuracy_asks_the_predictor_first():
    probe = Probe(refresh="source-clean")
    target = DomainTarget(pair(), replace(TINY, steps=4), probe)
    parts, ctx = target.split(context()), context()
    loop = target._loop(probe, parts, ctx, target._predictor(parts, ctx))
    loop.refreshed = {0: 1.0}  # a predictor without fault: nothing can be better
    loop.pseudo = torch.full_like(loop.pseudo, 2)
    loop.run("probe")
    assert (loop.pseudo == 2).all()


def test_a_loss_that_is_not_finite_stops_the_training_and_says_where():
    with pytest.raises(TrainingError, match=r"probe: the loss of the model .* at update 0; lower"):
        DomainTarget(pair(), TINY, Probe(explode=True)).fit(context())


def test_what_does_not_fit_is_refused():
    target = DomainTarget(pair(), TINY)
    with pytest.raises(ConfigError, match="erm and dann; they do not compose"):
        target.trained_by(Erm()).trained_by(Dann())
    with pytest.raises(ConfigError, match=r"dann adapts to a target domain, and 'bands' has none"):
        DomainTarget(single(), TINY).trained_by(Dann())
    with pytest.raises(ConfigError, match="'oracle' needs a target domain"):
        configure(single(), {"select": "oracle"})
    with pytest.raises(UnknownNameError, match="digit-cnn-small"):
        configure(pair(), {"model": "digit-cnn-smal"})
    with pytest.raises(ConfigError, match=r"eps: expected a radius .* got '8/0'"):
        configure(pair(), {"eps": "8/0"})


def test_one_domain_has_its_own_test_images_and_source_selectors():
    config = configure(single(), {"model": "digit-cnn-small", "steps": 4, "check_every": 2, "val_rows": 10})
    assert (config.select, config.size) == ("source-pgd", 0)
    (taken,) = DomainTarget(single(), config).selected(context())
    assert set(taken) == {"source-clean", "source-pgd", "last"}


def test_resizing_keeps_constant_images_and_the_mean():
    images = bands(6, 0)
    assert resized(images, 0) is images
    half = resized(images, 4)
    assert half.images.shape == (6, 4, 4, 3) and half.images.dtype == np.uint8
    assert abs(float(half.images.mean()) - float(images.images.mean())) < 1


def test_the_split_depends_on_the_seed_alone():
    one, two = (split(pair(), SeedPath(3)) for _ in range(2))
    assert np.array_equal(one.test.images, two.test.images)
    assert not np.array_equal(one.test.images, split(pair(), SeedPath(4)).test.images)
