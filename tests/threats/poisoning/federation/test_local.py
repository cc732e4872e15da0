"""Local training of many clients at once, one by one, and in closed form."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from redteam.core.errors import ConfigError
from redteam.core.seeding import SeedPath
from redteam.learn import models
from redteam.learn.models.convnets import Mlp
from redteam.threats.poisoning.federation.local import Recipe, generic, orders, train
from redteam.threats.poisoning.federation.network import Network


def network(name: str = "mlp", size: int = 8, channels: int = 1, classes: int = 4) -> Network:
    return Network(models.build(name, classes=classes, shape=(size, size, channels), seeds=SeedPath(0)))


def batch(clients: int, n: int, size: int = 8, channels: int = 1, classes: int = 4, seed: int = 0):
    g = SeedPath(seed).torch()
    images = torch.randn(clients, n, channels, size, size, generator=g)
    return images, torch.randint(0, classes, (clients, n), generator=g)


def recipe(together: bool = True, batch_size: int = 5, lr: float = 0.1) -> Recipe:
    return Recipe(batch_size=batch_size, lr=lr, together=together)


@pytest.mark.parametrize(("name", "size", "channels"), [("mlp", 8, 3), ("mlp", 17, 1), ("convnet", 8, 1)])
def test_clients_together_are_as_one_by_one(name, size, channels):
    net = network(name, size, channels)
    images, labels = batch(6, 12, size, channels)
    order = orders(2, 6, 12, SeedPath(1).torch())
    start = net.flat()
    together = train(net, start, images, labels, order, recipe())
    alone = train(net, start, images, labels, order, recipe(together=False))
    mapped = generic(net, start, images, labels, order, recipe())
    assert alone.abs().max() > 1e-3
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(mapped, alone, rtol=1e-4, atol=1e-6)
    assert torch.equal(start, net.flat())


@settings(max_examples=20)
@given(
    clients=st.integers(1, 5), n=st.integers(1, 9), size=st.integers(1, 10), passes=st.integers(1, 3),
    lr=st.floats(0.01, 0.5), seed=st.integers(0, 99),
)  # fmt: skip
def test_the_closed_form_of_the_mlp_is_what_autograd_gives(clients, n, size, passes, lr, seed):
    net = Network(network().module.double())
    images, labels = batch(clients, n, seed=seed)
    order = orders(passes, clients, n, SeedPath(seed).torch())
    args = net.flat(), images.double(), labels, order, recipe(batch_size=size, lr=lr)
    assert isinstance(net.module, Mlp)
    torch.testing.assert_close(train(net, *args), generic(net, *args), rtol=1e-9, atol=1e-12)


@settings(max_examples=20)
@given(st.permutations(range(5)))
def test_a_client_does_not_depend_on_its_place(perm):
    net = network()
    images, labels = batch(5, 6)
    order = orders(1, 5, 6, SeedPath(2).torch())
    a = train(net, net.flat(), images, labels, order, recipe())
    p = torch.tensor(perm)
    b = train(net, net.flat(), images[p], labels[p], order[:, p], recipe())
    torch.testing.assert_close(b, a[p], rtol=1e-5, atol=1e-7)


def test_one_step_of_a_linear_model_is_minus_the_rate_times_the_gradient():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    net = Network(linear.double())
    images, labels = batch(1, 7)
    x, start = images.double(), net.flat()
    (update,) = train(
        net, start, x, labels, orders(1, 1, 7, SeedPath(0).torch()), recipe(batch_size=7, lr=0.3)
    )
    z = x[0].flatten(1)
    errors = linear(x[0]).softmax(1).detach() - nn.functional.one_hot(labels[0], 4)
    gradient = torch.cat([(errors.T @ z / 7).flatten(), errors.mean(0)])
    torch.testing.assert_close(update, -0.3 * gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["mlp", "convnet"])
def test_one_local_step_of_all_clients_averages_to_a_central_step(name):
    net = network(name)
    images, labels = batch(6, 8)
    updates = train(
        net, net.flat(), images, labels, orders(1, 6, 8, SeedPath(0).torch()), recipe(batch_size=8)
    )
    everything = images.flatten(0, 1)[None], labels.flatten()[None]
    central = train(
        net, net.flat(), *everything, orders(1, 1, 48, SeedPath(0).torch()), recipe(batch_size=48)
    )
    torch.testing.assert_close(updates.mean(0), central[0], rtol=1e-4, atol=1e-7)


def test_more_passes_begin_with_the_same_orders():
    a, b = (orders(passes, 3, 7, SeedPath(4).torch()) for passes in (2, 5))
    assert torch.equal(a, b[:2]) and (b.sort(-1).values == torch.arange(7)).all()


def test_flat_parameters_are_views_in_the_order_of_the_module():
    net = network("convnet")
    flat = torch.arange(net.size, dtype=torch.float32)
    views = net.views(flat)
    assert torch.equal(torch.cat([v.flatten() for v in views.values()]), flat)
    views[next(iter(views))].zero_()
    assert (flat[:5] == 0).all()
    module = net.with_parameters(net.flat() * 2)
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(module(x), net.logits(net.flat() * 2, x))


def test_features_are_the_input_of_the_last_layer():
    net = network("convnet")
    x, start = torch.randn(9, 1, 8, 8), net.flat()
    found = net.features(start, x)
    assert found.shape == (9, 128)
    views = net.views(start)
    torch.testing.assert_close(
        found @ views["8.weight"].T + views["8.bias"], net.logits(start, x), rtol=1e-4, atol=1e-5
    )
    assert net.features(start, x[:0]).shape == (0, 128)


@pytest.mark.parametrize("name", ["cnn", "resnet18", "preact-resnet8"])
def test_batch_normalisation_is_refused_by_name(name):
    with pytest.raises(ConfigError, match="BatchNorm2d.*mlp or convnet"):
        network(name)


def test_sizes_of_the_networks_for_federations():
    assert network("mlp", 14, 1, 10).size == 13_258
    assert network("convnet", 28, 1, 10).size == 1_199_882
    assert network("mlp", 28, 1, 10).size == 13_258
