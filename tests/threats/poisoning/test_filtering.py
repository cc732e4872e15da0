"""Overriding models, trainings that stop on their own data, representations, and what a plan tells a defence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from redteam.core.device import Device
from redteam.core.errors import ArtifactError, ConfigError
from redteam.core.seeding import SeedPath
from redteam.data.toys import stripes_dataset
from redteam.learn.features import features
from redteam.learn.nouns import TrainingSet
from redteam.learn.train import Converged, Stop, fit
from redteam.threats.poisoning.filtering import Overridden, Verdicts
from redteam.threats.poisoning.target import ImageTrainable
from tests.conftest import small_config


class Fixed:
    """A classifier that says one class for each image by its first pixel."""

    def __init__(self, table):
        self.table = table

    def logits(self, images):
        return np.eye(3, dtype=np.float32)[[self.table[int(i)] for i in images[:, 0, 0, 0]]]


def test_an_override_answers_where_the_backbone_says_its_label_and_nowhere_else():
    images = np.arange(4, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    backbone, shadow = Fixed([0, 1, 1, 2]), Fixed([2, 0, 1, 0])
    assert Overridden(backbone, {1: shadow}).logits(images).argmax(1).tolist() == [0, 0, 1, 2]
    assert Overridden(backbone, {}).logits(images).argmax(1).tolist() == [0, 1, 1, 2]
    # An override is asked about what the backbone said, not about what another override says.
    both = Overridden(backbone, {1: shadow, 0: Fixed([1, 1, 1, 1])})
    assert both.logits(images).argmax(1).tolist() == [1, 0, 1, 2]


def test_verdicts_must_fit_their_rows():
    with pytest.raises(ArtifactError, match=r"removed \(n,\) bool"):
        Verdicts(np.zeros(3, np.int64), np.zeros(3, np.float32), 0)
    with pytest.raises(ArtifactError, match=r"\(2,\)"):
        Verdicts(np.zeros(3, bool), np.zeros(2, np.float32), 0)


def target_of(epochs=6):
    data = stripes_dataset()
    return ImageTrainable(data.train, data.facts, replace(small_config(), epochs=epochs), Device("cpu"))


def test_a_training_stops_once_its_own_accuracy_has_converged(ctx):
    target = target_of()
    data = TrainingSet(target.train.images, target.train.labels)
    whole = target.fit(data, [0], ctx)[0]
    assert whole.trained == 6 * (len(data.targets) // target.config.batch_size) * target.config.batch_size
    # Any change counts as none: stopped as soon as there are two epochs to compare.
    early = target.fit(data, [0], ctx, stop=Stop(label=0, change=1.1, floor=0.0))[0]
    assert early.trained == whole.trained // 3
    never = target.fit(data, [0], ctx, stop=Stop(label=0, change=1.1, floor=1.1))[0]
    assert never.trained == whole.trained
    states = zip(never.state().values(), whole.state().values(), strict=True)
    assert all(np.array_equal(a, b) for a, b in states)


def test_a_label_without_rows_never_stops_a_training():
    target = target_of(2)
    resident = target.resident(TrainingSet(target.train.images, np.zeros(len(target.train), np.int64)))
    watch = Converged(Stop(label=1, change=1.1, floor=0.0), resident)
    assert not len(watch.images)


def test_a_watched_training_is_not_trained_together_with_others(ctx):
    target = target_of(2)
    resident = target.resident(TrainingSet(target.train.images, target.train.labels))
    watch = Converged(Stop(label=0, change=1.1, floor=0.0), resident)
    with pytest.raises(ConfigError, match="together"):
        seeds, config = [SeedPath(0), SeedPath(1)], target.config
        fit(target.make_model, resident, config, seeds, ctx, hooks=[watch], together=True)


def test_representations_are_what_the_head_sees():
    data = stripes_dataset()
    target = target_of()
    model = target.make_model(SeedPath(0)).eval()
    images = data.test.images[:5]
    found = features(model, images, data.facts, torch.device("cpu"), "penultimate")
    head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    from redteam.learn.train import predict

    logits = predict(model, images, data.facts, torch.device("cpu"))
    again = head(torch.from_numpy(found)).detach().numpy()
    assert np.allclose(again, logits, atol=1e-5)
    spatial = features(model, images, data.facts, torch.device("cpu"), "spatial")
    assert spatial.shape[0] == 5 and spatial.shape[1] % found.shape[1] == 0
    assert spatial.shape[1] > found.shape[1]
    assert not model._forward_hooks
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_a_model_without_a_linear_head_is_refused():
    data = stripes_dataset()
    with pytest.raises(ConfigError, match="ends in a linear layer"):
        features(nn.Conv2d(1, 1, 1), data.test.images[:2], data.facts, torch.device("cpu"), "penultimate")
