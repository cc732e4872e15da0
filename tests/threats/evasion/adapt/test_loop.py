"""The loop: replicas, batches, the ramp, validation, selection, pseudo-labels, and what a target refuses."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from redteam.core.errors import ConfigError, TrainingError, UnknownNameError
from redteam.core.seeding import SeedPath
from redteam.data.nouns import ImageSet
from redteam.learn.perturb import ce
from redteam.threats.evasion.adapt.algorithm import Dann, Erm
from redteam.threats.evasion.adapt.config import SELECTORS, DomainConfig
from redteam.threats.evasion.adapt.loop import _Deck
from redteam.threats.evasion.adapt.select import Keeper
from redteam.threats.evasion.domain import split
from redteam.threats.evasion.target import DomainTarget, configure, resized
from redteam.threats.evasion.tiny import bands, pair, single
from tests.conftest import context

TINY = DomainConfig(
    model="digit-cnn-small", size=0, rows=0, steps=12, batch_size=16, check_every=4, val_rows=20, val_steps=2,
    inner_steps=2, critic_width=16, lr=3e-3,
)  # fmt: skip


@dataclass(frozen=True)
class Probe:
    """Erm with pseudo-labels; notes the radius and the labels that each update was given."""

    name: str = "probe"
    version: str = "1"
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
        (_, losses) = next(told for told in Dann().outer(step, None) if told[0] == "model")
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


def test_keeper_takes_the_latest_of_the_best_and_drops_the_rest():
    class Nets:
        def state(self, replica):
            return {"w": torch.zeros(1)}

    keeper = Keeper(1)
    values = {"source_clean": [0.5, 0.9, 0.9], "source_pgd": [0.3, 0.1, 0.2], "oracle": [0.0, 0.0, 0.4]}
    for step in range(3):
        keeper.see(step, {k: np.array([v[step]]) for k, v in values.items()}, Nets())
    assert keeper.chosen == {
        (0, "source-clean"): 2, (0, "source-pgd"): 0, (0, "oracle"): 2, (0, "last"): 2,
    }  # fmt: skip
    assert set(keeper.states) == {(0, 0), (0, 2)}


def test_every_selector_takes_the_best_of_its_own_history():
    target = DomainTarget(pair(), TINY, Dann())
    ctx = context()
    (taken,) = target.selected(ctx)
    history = target.history(ctx)
    assert set(taken) == set(SELECTORS)
    for selector, criterion in (("source-clean", "source_clean"), ("pseudo", "pseudo"), ("oracle", "oracle")):
        rows = [i for i, c in enumerate(history["criterion"]) if c == criterion]
        best = max(rows, key=lambda i: (history["value"][i], history["step"][i]))
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


@pytest.mark.parametrize("rule", ["source-clean", "source-pgd", "oracle"])
@pytest.mark.parametrize("better", [True, False])
def test_a_refresh_asks_the_predictor_first(rule, better, monkeypatch):
    """Labels change only where the model's own criterion beats the predictor's, and then what it has reached before."""
    probe = Probe(refresh=rule)
    target = DomainTarget(pair(), TINY, probe)
    parts, ctx = target.split(context()), context()
    loop = target._loop(probe, parts, ctx, target._predictor(parts, ctx))
    criterion = {"source-clean": "source_clean", "source-pgd": "source_pgd", "oracle": "oracle_clean"}[rule]
    of_predictor = loop._predictors_own(criterion)
    assert 0 <= of_predictor[0] <= 1
    marked = torch.full_like(loop.pseudo, 2)
    loop.pseudo = marked.clone()
    offset = 0.01 if better else 0.0
    loop._refresh({criterion: of_predictor + offset})
    assert bool((loop.pseudo != marked).any()) == better
    loop.pseudo = marked.clone()
    loop._refresh({criterion: of_predictor + offset})  # no better than before: nothing changes
    assert (loop.pseudo == marked).all()


def test_labels_of_the_target_reach_nothing_but_the_oracle():
    """With the target's labels permuted, all states but the oracle's are the same, pseudo-labels too."""
    data = pair()
    assert data.target is not None
    rolled = replace(data, target=ImageSet(data.target.images, np.roll(data.target.labels, 1), data.classes))
    target = DomainTarget(data, TINY, Probe(refresh="source-pgd"))
    (plain,), (other,) = (replace(target, dataset=d).selected(context()) for d in (data, rolled))
    x = torch.rand(4, 3, 8, 8)
    with torch.no_grad():
        for selector in ("source-clean", "source-pgd", "pseudo", "last"):
            assert plain[selector].step == other[selector].step
            assert torch.equal(plain[selector].network(x), other[selector].network(x))
    assert np.array_equal(plain["last"].pseudo, other["last"].pseudo)
    told = (
        DomainTarget(data, TINY, Probe()).history(context()),
        DomainTarget(rolled, TINY, Probe()).history(context()),
    )
    assert not np.array_equal(told[0]["value"], told[1]["value"]), "the oracle's criterion does see them"


def test_one_radius_is_one_cell_however_it_is_written():
    assert configure(pair(), {"eps": "1/10"}) == configure(pair(), {"eps": 0.1})


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
