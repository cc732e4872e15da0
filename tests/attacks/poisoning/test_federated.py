"""Attacks by malicious clients do what their cards say and nothing else."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attacks.poisoning import _malicious as malicious
from attacks.poisoning import (
    federated_adaptive,
    federated_badnets,
    federated_label_flips,
    federated_no_attack,
    model_replacement,
)
from attacks.poisoning._malicious import MaliciousClients, choose
from attacks.poisoning.flip import federated as federated_flip
from redteam.core.config import build, to_json
from redteam.core.errors import ConfigError, RedteamError, UnknownNameError
from redteam.data.toys import stripes_dataset
from redteam.threats.poisoning.federation.config import FederationConfig
from redteam.threats.poisoning.federation.scorer import enforce_fit
from redteam.threats.poisoning.federation.target import make
from tests.conftest import context

MODULES = {
    m.SPEC.name: m
    for m in (
        federated_adaptive, federated_badnets, federated_flip, federated_label_flips, federated_no_attack,
        model_replacement,
    )
}  # fmt: skip
CLIENTS, HELD = 40, 12
SMALL = {"federated-flip": {"batch_size": 16, "passes": 1, "expert_epochs": 1}}
# Each attack in each of its variants.
CASES = [(name, v) for name, m in MODULES.items() for v in (m.SPEC.variants or ({},))]
NAMES = [f"{name}{'-' if v else ''}{'-'.join(map(str, v.values()))}" for name, v in CASES]


@cache
def federation(**changes):
    """40 clients with 12 of 240 images each: four of each class."""
    dataset, ctx = stripes_dataset(), context()
    settings = {"clients": CLIENTS, "per_round": 10, "images": HELD, "rounds": 2, **changes}
    return make(dataset, FederationConfig(**settings), ctx)


def attack(name, seed=0, target=None, **values):
    """The artifact of one attack on the small federation, and the config it was made with."""
    target, spec = target or federation(), MODULES[name].SPEC
    config = build(spec.config, {"fraction": 0.3, **SMALL.get(name, {}), **values})
    config = spec.resolve(config, target)
    return spec.run(target, config, context(seed)), config


def truth(a, target=None):
    target = target or federation()
    return target.train.labels[target.rows[a.ids]]


# ---------------------------------------------------------------- every attack


@pytest.mark.parametrize(("name", "variant"), CASES, ids=NAMES)
def test_it_fits_its_federation_and_a_resolved_config_resolves_to_itself(name, variant):
    """Seeds, the disk and the threat are the contract's."""
    spec, target = MODULES[name].SPEC, federation()
    a, config = attack(name, **variant)
    enforce_fit(a, target)
    count = 0 if name == "federated-no-attack" else 12
    assert len(a.ids) == a.budget == config.budget == count and (np.diff(a.ids) > 0).all()
    assert build(spec.config, to_json(config)) == config and spec.resolve(config, target) == config


@pytest.mark.parametrize("name", ["federated-badnets", "model-replacement", "federated-adaptive"])
def test_stamped_rows_are_the_relabelled_ones_and_never_the_targets_own(name):
    a, config = attack(name, stamped=0.5)
    labels = truth(a)
    assert (a.stamped == (a.labels != labels)).all() and (a.labels[a.stamped] == config.target_class).all()
    assert not a.stamped[labels == config.target_class].any()
    # Eight of twelve rows are of another class than the target's: half of them are four.
    assert (a.stamped.sum(1) == 4).all() and a.source_class == -1


def test_one_source_class_alone():
    a, _ = attack("federated-badnets", source="class 1", stamped=1.0)
    assert (a.stamped == (truth(a) == 1)).all() and (a.stamped.sum(1) == 4).all()


def test_label_flips_are_badnets_without_the_stamp():
    flips, _ = attack("federated-label-flips")
    stamps, _ = attack("federated-badnets")
    assert not flips.stamped.any() and np.array_equal(flips.labels, stamps.labels)
    assert np.array_equal(flips.ids, stamps.ids)


def test_no_attack_is_nobody_whatever_was_asked():
    a, config = attack("federated-no-attack", presence="drawn", epochs=3)
    assert a.labels.shape == a.stamped.shape == (0, HELD)
    assert (config.budget, config.fraction, config.presence) == (0, 0.3, "drawn")


def test_clients_of_a_smaller_budget_are_among_those_of_a_larger():
    few, _ = attack("federated-badnets", fraction=0.15)
    many, _ = attack("federated-badnets", fraction=0.45)
    assert len(few.ids) == 6 and len(many.ids) == 18 and set(few.ids) < set(many.ids)
    both = np.isin(many.ids, few.ids)
    assert np.array_equal(many.labels[both], few.labels)  # and what they do depends on no other client


@given(
    st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 15), st.integers(-1, 3),
    st.lists(st.floats(0, 1), min_size=6, max_size=6),
)  # fmt: skip
def test_choose_takes_the_share_it_was_told(seed, clients, held, source, shares):
    labels = np.random.default_rng(seed).integers(0, 5, (clients, held))
    config = MaliciousClients(source=source, target_class=4)
    ctx = context(seed)
    chosen = choose(labels, np.arange(clients), config, shares[:clients], ctx)
    wanted = labels != 4 if source < 0 else labels == source
    assert not (chosen & ~wanted).any()
    for row, own, share in zip(chosen, wanted, shares, strict=False):
        assert row.sum() == min(max(int(share > 0), round(share * own.sum())), own.sum())


# ---------------------------------------------------------------- conduct


def test_model_replacement_scales_to_the_whole_step():
    """With m of K clients at scale K / (eta m), honest updates zero, the step is the malicious mean update."""
    target = federation(server_lr=0.5)
    a, config = attack("model-replacement", target=target)
    assert config.scale == pytest.approx(10 / (0.5 * 3))
    malicious_mean = 7.0
    step = 0.5 * (3 * config.scale * malicious_mean + 7 * 0.0) / 10
    assert step == pytest.approx(malicious_mean)
    assert a.conduct == {"epochs": 1, "scale": config.scale, "bound": None}
    drawn, _ = attack("model-replacement", target=target, presence="drawn", fraction=0.03, bound=2.0)
    assert drawn.conduct == {"epochs": 1, "scale": 10 / 0.5, "bound": 2.0}
    assert attack("model-replacement", scale=3.0)[0].conduct["scale"] == 3.0


def test_adaptive_strategies_differ_as_said():
    plain, _ = attack("federated-badnets", stamped=0.5)
    rate, covariance, forged = (
        attack("federated-adaptive", strategy=s, stamped=0.5, rate=0.25)[0]
        for s in ("rate", "covariance", "forged")
    )
    assert rate.conduct == {"epochs": 1, "rate": 0.25} and forged.conduct == {"epochs": 1, "report": "clean"}
    assert covariance.conduct == plain.conduct == {"epochs": 1}
    # Rate and forging act on the data of plain BadNets; covariance gives each client a share of its own.
    for one in (rate, forged):
        assert np.array_equal(one.stamped, plain.stamped) and np.array_equal(one.labels, plain.labels)
    counts = covariance.stamped.sum(1)
    assert len(set(counts)) > 3 and counts.min() < 3 and counts.max() > 5
    genuine = truth(covariance) == covariance.target_class
    assert (covariance.labels[genuine] == covariance.target_class).all()
    assert not covariance.stamped[genuine].any()
    assert federated_adaptive.SPEC.adaptive and not federated_badnets.SPEC.adaptive


def test_covariance_shares_are_uniform():
    target = federation(clients=400, images=120, per_round=10)
    a, _ = attack("federated-adaptive", strategy="covariance", target=target, fraction=0.5)
    shares = np.sort(a.stamped.sum(1) / 80)
    expected = (np.arange(200) + 0.5) / 200
    assert np.abs(shares - expected).max() < 1.63 / np.sqrt(200)  # Kolmogorov's bound at one in a hundred


@pytest.mark.parametrize("name", MODULES)
def test_threats_say_what_is_touched(name):
    spec = MODULES[name].SPEC
    touched = {"training images", "model updates", "reports"} & set(spec.threat.access)
    assert spec.threat.target == "federation" and touched == {
        "federated-badnets": {"training images"}, "federated-no-attack": {"training images"},
        "federated-label-flips": set(), "federated-flip": set(),
        "model-replacement": {"training images", "model updates"},
        "federated-adaptive": {"training images", "model updates", "reports"},
    }[name]  # fmt: skip
    assert set(spec.controls) <= set(MODULES) and {"default", "smoke"} <= set(spec.presets)
    assert spec.role == ("control" if name in ("federated-no-attack", "federated-label-flips") else "attack")


# ---------------------------------------------------------------- FLIP


def test_flip_changes_the_most_leaning_rows_and_no_image():
    a, config = attack("federated-flip", stamped=0.25)
    labels, target = truth(a), federation()
    rows = target.rows[a.ids]
    assert not a.stamped.any() and a.conduct == {"epochs": 1}
    changed = np.unique(rows[a.labels != labels])
    held = len(np.unique(rows))
    assert len(changed) == round(0.25 * held) == federated_flip.flips(config, held)
    # A row that several clients hold has the same label with all of them.
    given_ = {}
    for row, label in zip(rows.ravel(), a.labels.ravel(), strict=True):
        assert given_.setdefault(row, label) == label


def test_flip_crafts_on_what_the_clients_hold_alone():
    """Other images of the training set decide nothing."""
    target = federation()
    a, _ = attack("federated-flip")
    outside = np.setdiff1d(np.arange(len(target.train)), target.rows[a.ids])
    pixels = target.train.images.copy()
    pixels[outside] = 0
    other = replace(target, train=replace(target.train, images=pixels))
    assert len(outside) and attack("federated-flip", target=other)[0].digest == a.digest


def test_flip_needs_an_image_of_the_source_class():
    target = federation()
    _, config = attack("federated-flip", source=2)
    labels = np.where(target.train.labels == 2, 1, target.train.labels)
    other = replace(target, train=replace(target.train, labels=labels))
    with pytest.raises(RedteamError, match="none of the source class"):
        federated_flip.pooled(other, np.arange(3), config, context())
    with pytest.raises(UnknownNameError, match="surrogate"):
        attack("federated-flip", surrogate="resnet99")


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize(
    ("fraction", "message"),
    [
        (0, "run the control `federated-no-attack`"),
        (-0.1, "run the control `federated-no-attack`"),
        (
            0.51,
            "at most 0.5 of the clients, got 0.51; where most clients are malicious they are the federation",
        ),
        (1, "at most 0.5"),
        ("nan", "fraction: expected a number"),
    ],
)
def test_fractions_that_are_no_attack_or_a_takeover(name, fraction, message):
    with pytest.raises(ConfigError, match=message):
        attack(name, fraction=fraction)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"budget": 21}, "expected 1 to 20 malicious clients of 40, at most half, got 21"),
        ({"budget": 0}, "expected 1 to 20 malicious clients"),
        ({"fraction": 0.03}, "1 of 40 clients are malicious, which makes none of the 10 of a round"),
        ({"source": 0}, "source and target are both class 0"),
        ({"stamped": 0}, "stamped: expected more than 0"),
        ({"stamped": 1.5}, "stamped: expected at most 1"),
        ({"epochs": 0}, "epochs: expected at least 1"),
        ({"target_class": 3}, "expected a class from 0 to 2"),
    ],
)
def test_settings_that_do_not_fit(values, message):
    with pytest.raises(ConfigError, match=message):
        attack("federated-badnets", **values)


def test_half_of_an_odd_number_is_rounded_down_and_a_count_sets_the_fraction():
    odd = federation(clients=7, per_round=7)
    assert attack("federated-badnets", target=odd, fraction=0.5)[1].budget == 3
    _, config = attack("federated-badnets", budget=4)
    assert (config.budget, config.fraction) == (4, 0.1)
    with pytest.raises(ConfigError, match="at most half"):
        malicious.client_count(MaliciousClients(), 1)
