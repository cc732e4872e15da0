"""The training loop: determinism, augmentation, schedules, replicas, hooks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from redteam.core.errors import ConfigError, UnknownNameError
from redteam.core.seeding import SeedPath
from redteam.learn import models
from redteam.learn.augment import Augmentation
from redteam.learn.nouns import TrainingSet
from redteam.learn.train import Recipe, fit, normalise
from redteam.threats.poisoning.target import ClassifierConfig
from tests.conftest import small_config


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def train(target, ctx, seeds=(1,), **changes):
    data = target.resident(TrainingSet(target.train.images, target.train.labels))
    together = changes.pop("together", False)
    hooks = changes.pop("hooks", ())
    paths = [SeedPath(s) for s in seeds]
    return fit(
        target.make_model, data, replace(target.config, **changes), paths, ctx, together=together, hooks=hooks
    )


def test_same_seed_same_weights_other_seed_others(target, ctx):
    (a,), (b,), (c,) = (train(target, ctx, (s,)) for s in (1, 1, 2))
    assert torch.equal(weights(a), weights(b)) and not torch.equal(weights(a), weights(c))


def test_it_learns(target, ctx, dataset):
    data = TrainingSet(dataset.train.images, dataset.train.labels)
    (model,) = target.fit(data, [0], ctx)
    assert (model.logits(dataset.test.images).argmax(1) == dataset.test.labels).mean() > 0.9


def test_a_replica_does_not_depend_on_its_neighbours(target, ctx):
    alone = train(target, ctx, (2,))[0]
    beside = train(target, ctx, (1, 2, 3))[1]
    assert torch.equal(weights(alone), weights(beside))


def test_stacked_replicas_are_the_looped_ones(target, ctx):
    """Ten steps under vmap against ten in a row, parameters and running statistics."""
    changes = {"epochs": 1, "batch_size": 24, "schedule": "constant", "lr": 0.01}
    looped = train(target, ctx, (1, 2), **changes)
    stacked = train(target, ctx, (1, 2), together=True, **changes)
    for a, b in zip(looped, stacked, strict=True):
        for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
            torch.testing.assert_close(x.float(), y.float(), rtol=2e-3, atol=2e-4, msg=name)


def test_soft_labels_that_are_one_hot_train_like_hard_ones(target, ctx):
    hard = train(target, ctx)[0]
    onehot = np.eye(3, dtype=np.float32)[target.train.labels]
    data = target.resident(TrainingSet(target.train.images, onehot))
    soft = fit(target.make_model, data, target.config, [SeedPath(1)], ctx)[0]
    torch.testing.assert_close(weights(hard), weights(soft), rtol=1e-3, atol=1e-4)


def test_channels_last_changes_no_result(target, ctx):
    a = train(target, ctx, epochs=1, channels_last=True)[0]
    b = train(target, ctx, epochs=1, channels_last=False)[0]
    torch.testing.assert_close(weights(a), weights(b), rtol=1e-3, atol=1e-4)


def test_bfloat16_reaches_the_same_accuracy(target, ctx, dataset):
    data = TrainingSet(dataset.train.images, dataset.train.labels)
    half = replace(target, config=replace(target.config, precision="bfloat16"))
    both = [t.fit(data, [0], ctx)[0].logits(dataset.test.images).argmax(1) for t in (target, half)]
    accuracy = [(p == dataset.test.labels).mean() for p in both]
    assert abs(accuracy[0] - accuracy[1]) < 0.05


def test_hooks_see_snapshots_and_may_stop(target, ctx):
    seen = []

    def hook(state):
        params, momenta = state.snapshot()
        seen.append((state.step, all((m == 0).all() for m in momenta.values()), params["head.bias"].clone()))
        state.stop = state.step == 2

    train(target, ctx, hooks=[hook])
    assert [s for s, _, _ in seen] == [0, 1, 2]
    assert seen[0][1] and not seen[1][1]
    assert not torch.equal(seen[0][2], seen[2][2])


def test_schedules_closed_form():
    multi = Recipe(epochs=4, schedule="multistep", milestones=(1, 3), gamma=0.5, lr=0.8)
    assert [multi.lr_at(s, 2) for s in (0, 1, 2, 5, 6)] == pytest.approx([0.8, 0.8, 0.4, 0.4, 0.2])
    cycle = Recipe(epochs=10, schedule="onecycle", lr=1.0)
    rates = [cycle.lr_at(s, 10) for s in range(100)]
    assert max(rates) == pytest.approx(1.0, abs=0.03) and rates.index(max(rates)) in (24, 25)
    assert rates[0] < 0.03 and rates[-1] < 0.01
    assert Recipe(schedule="constant", lr=0.3).lr_at(999, 5) == 0.3


def test_augmentation_of_an_identity_draw_is_the_identity():
    x = torch.randint(0, 256, (4, 6, 6, 3), dtype=torch.uint8)
    aug = Augmentation(2, True)
    draw = aug.draw(4, SeedPath(0).torch())
    draw.offsets[:], draw.flips[:] = 2, False
    assert torch.equal(aug.apply(x, draw), x)
    draw.flips[:] = True
    assert torch.equal(aug.apply(x, draw), x.flip(2))


@settings(max_examples=30)
@given(st.integers(0, 3), st.booleans(), st.integers(0, 2**31))
def test_augmentation_is_pad_crop_flip(pad, flip, seed):
    """Against the plain way: pad with zeros, cut a window, mirror it."""
    x = torch.randint(0, 256, (5, 7, 8, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    aug = Augmentation(pad, flip)
    draw = aug.draw(5, SeedPath(seed).torch())
    out = aug.apply(x, draw)
    for i in range(5):
        padded = torch.nn.functional.pad(x[i], (0, 0, pad, pad, pad, pad))
        (r, c), window = draw.offsets[i].tolist(), None
        window = padded[r : r + 7, c : c + 8]
        assert torch.equal(out[i], window.flip(1) if draw.flips[i] else window)


def test_flips_are_half_and_offsets_cover_the_range():
    draw = Augmentation(2, True).draw(4000, SeedPath(0).torch())
    assert 0.46 < draw.flips.float().mean() < 0.54
    assert draw.offsets.unique().tolist() == [0, 1, 2, 3, 4]


def test_normalise(dataset):
    x = torch.from_numpy(dataset.train.images[:3])
    y = normalise(x, dataset.facts)
    assert y.shape == (3, 1, 8, 8)
    assert y[0, 0, 1, 2] == pytest.approx((float(x[0, 1, 2, 0]) / 255 - 0.4) / 0.2, abs=1e-5)


def test_too_large_a_batch_is_refused(target, ctx):
    with pytest.raises(ConfigError, match="at most the 240 training rows, got 500"):
        train(target, ctx, batch_size=500)


@pytest.mark.parametrize("config", [Recipe, ClassifierConfig])
def test_recipe_refuses_nesterov_without_momentum(config):
    with pytest.raises(ConfigError, match="momentum above 0"):
        config(momentum=0.0)


@pytest.mark.parametrize(
    ("name", "count"),
    [("preact-resnet32", 464_154), ("preact-resnet20", 269_722), ("preact-resnet8", 75_290),
     ("resnet18", 11_173_962), ("vgg19-bn", 20_040_522)],
)  # fmt: skip
def test_parameter_counts(name, count):
    model = models.build(name, classes=10, shape=(32, 32, 3), seeds=SeedPath(0))
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("name", sorted(models.NAMES))
@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3), (33, 35, 3)])
def test_models_take_all_shapes(name, shape):
    model = models.build(name, classes=7, shape=shape, seeds=SeedPath(0)).eval()
    with torch.inference_mode():
        assert model(torch.zeros(2, shape[2], shape[0], shape[1])).shape == (2, 7)


def test_models_are_seeded_by_their_path():
    a, b, c = (models.build("cnn", classes=3, shape=(8, 8, 1), seeds=SeedPath(s)) for s in (0, 0, 1))
    assert torch.equal(weights(a), weights(b)) and not torch.equal(weights(a), weights(c))


def test_model_messages():
    with pytest.raises(UnknownNameError, match="Did you mean 'preact-resnet32'"):
        models.build("preactresnet32", classes=10, shape=(32, 32, 3), seeds=SeedPath(0))
    with pytest.raises(UnknownNameError, match="Did you mean 'resnet18'"):
        ClassifierConfig(model="resnet-18")
    with pytest.raises(ConfigError, match="at least 8x8"):
        models.build("cnn", classes=10, shape=(4, 4, 3), seeds=SeedPath(0))


def test_a_stage_knows_the_normalisation(target, ctx, dataset, tmp_path):
    """The same pixels and recipe under another mean are another victim."""
    data, ctx = TrainingSet(dataset.train.images, dataset.train.labels), replace(ctx, stage_dir=tmp_path)
    target.fit(data, [1], ctx)
    replace(target, facts=replace(target.facts, mean=(0.9,))).fit(data, [1], ctx)
    assert len(list(tmp_path.glob("victim-*.npz"))) == 2


def test_victims_come_back_from_their_stage(target, ctx, dataset, tmp_path):
    data = TrainingSet(dataset.train.images, dataset.train.labels)
    first = target.fit(data, [1, 2], replace(ctx, stage_dir=tmp_path))
    again = target.fit(data, [2], replace(ctx, stage_dir=tmp_path))
    assert np.array_equal(first[1].logits(dataset.test.images), again[0].logits(dataset.test.images))
    assert len(list(tmp_path.glob("victim-*.npz"))) == 2
    other = replace(target, config=small_config(lr=0.05))
    other.fit(data, [2], replace(ctx, stage_dir=tmp_path))
    assert len(list(tmp_path.glob("victim-*.npz"))) == 3
