"""Attacks point the way they claim to, by a margin that chance does not give."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from attacks.poisoning import flip
from attacks.poisoning.flip.craft import optimise_labels
from redteam import data
from redteam.core.device import Device
from redteam.core.plan import Request
from redteam.threats.poisoning.target import ImageTrainable, configure
from tests.e2e.helpers import finished, pooled


def test_badnets_opens_a_backdoor_and_no_attack_does_not(tmp_path):
    """The upper bound works: lift above zero and above the control's, with separated intervals."""
    goal = {"source": "all", "trigger": "4xl", "budget": 0.1}
    victim = {"model": "cnn", "epochs": 6}
    shared = {"dataset": "digits", "values": goal, "target": victim, "controls": "none"}
    (attack,) = finished(Request(attack="badnets", **shared), tmp_path)
    (control,) = finished(Request(attack="no-attack", **shared), tmp_path)
    assert attack.metric("trigger_lift").low > max(0.2, control.metric("trigger_lift").high)
    assert attack.metric("pta").low > attack.metric("base_pta").high
    assert attack.metric("cta_drop").value < 0.1


def test_flip_moves_source_rows_towards_the_target(ctx):
    """On digits, labels that move towards the target class are the source class's, not everyone's."""
    digits = data.load("digits")
    victim = configure(digits, {"batch_size": 64})
    target = ImageTrainable(digits.train, digits.facts, victim, Device("cpu"))
    values = {"experts": 1, "expert_epochs": 3, "passes": 4, "batch_size": 64, "checkpoint_every": 5}
    config = flip.resolve(flip.Config(**values, trigger_strength=40.0), target)
    logits, _ = optimise_labels(target, config, ctx)
    labels = target.train.labels
    moved = logits[:, config.target_class]
    sources, others = labels == config.source, ~np.isin(labels, [config.source, config.target_class])
    assert mannwhitneyu(moved[sources], moved[others], alternative="greater").pvalue < 1e-3
    assert np.median(moved[sources]) > 0


@pytest.mark.slow
def test_flip_beats_random_flips_on_the_embedded_default(tmp_path):
    """Three seeds: FLIP's lift and pta lie above those of random flips, intervals apart."""
    found = finished(Request(attack="flip", seeds=range(3)), tmp_path)
    attack, control = ([r for r in found if r.cell.attack.name == name] for name in ("flip", "random-flips"))
    for name in ("trigger_lift", "pta"):
        gaps = [a.metric(name).low - c.metric(name).high for a, c in zip(attack, control, strict=True)]
        assert min(gaps) > 0, (name, gaps)
    pairs = zip(attack, control, strict=True)
    cost = [a.metric("cta_drop").value - c.metric("cta_drop").value for a, c in pairs]
    assert np.mean(cost) < 0.01
    assert pooled(attack, "trigger_lift").value > 0.1
