"""Shadow filtering against clients and representations whose every answer is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from defenses.poisoning import shadow
from defenses.poisoning.shadow.central import Shadowed, flag
from defenses.poisoning.shadow.config import Config
from defenses.poisoning.shadow.federated import Filter, Shadow, ShadowRule, Trend
from redteam.core.errors import RedteamError, ThreatMismatchError
from redteam.learn.nouns import TrainingSet
from redteam.threats.poisoning.federation.nouns import Setting, aggregated
from redteam.threats.poisoning.filtering import FilteredClassifier, Overridden
from tests.defenses.poisoning.rounds import FakeFederation, noted, round_of
from tests.threats.poisoning.federation.helpers import clients, federation

# Windows and pools of one round: launch after round 1, threshold after 2, first training 3, stop 4, watch from 5.
QUICK = {"label": 0, "window": 1, "pool": 1, "k": 4, "floor": 0.5, "change": 0.01, "drop": 0.02}
LAUNCH, POOL, TRAIN, STOP, WATCH = range(1, 6)


@dataclass
class Crowd:
    """K clients. means: (K, D) representations. counts: (K,) samples. right: accuracy by (params, label).

    asked: parameters and choice of each training. Every update is the client's own row of `updates` (K, P).
    """

    means: torch.Tensor
    counts: torch.Tensor
    updates: torch.Tensor
    right: Callable[[torch.Tensor, int], float] = lambda params, label: 0.9
    asked: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    represented: list[torch.Tensor] = field(default_factory=list)
    by_label: dict[int, torch.Tensor] = field(default_factory=dict)
    classes: int = 4

    def train(self, params, chosen):
        self.asked.append((params.clone(), chosen.clone()))
        return self.updates * chosen[:, None]

    def represent(self, params, label):
        self.represented.append(params.clone())
        return self.by_label.get(label, self.means), self.counts

    def accuracy(self, params, label):
        return torch.full((len(self.counts),), round(1000 * self.right(params, label))), torch.full(
            (len(self.counts),), 1000
        )


def crowd(count=100, malicious=6, size=8, *, shift=12.0, seed=0, **more):
    """Representations N(0, I); the first `malicious` are shifted. Returns the crowd and who is malicious.

    Six in a hundred: where the share is above about a tenth, the core's filter keeps a cluster however far off it is.
    """
    rng = np.random.default_rng(seed)
    bad = np.arange(count) < malicious
    means = rng.normal(size=(count, size))
    means[bad, 0] += shift
    updates = torch.from_numpy(rng.normal(size=(count, 5))).float()
    found = Crowd(torch.from_numpy(means).float(), torch.full((count,), 7), updates, **more)
    return found, bad


def round_at(found, index, *, weights=None):
    """A round of the whole crowd, whose global parameters are all `index`."""
    made = round_of(found.updates, index=index, weights=weights, params=torch.full((5,), float(index)))
    return replace(made, learner=found)


def rule_of(malicious=0.06, *, classes=4, server_lr=1.0, **changes):
    config = Config(**{**QUICK, **changes})
    setting = Setting(classes=classes, per_round=100, rounds=50, server_lr=server_lr)
    return ShadowRule(config, setting, malicious)


def play(rule, found, rounds, start=0):
    """What the rule made of consecutive rounds of one crowd."""
    return [rule(round_at(found, index)) for index in range(start, start + rounds)]


# ---------------------------------------------------------------- parts


def test_trend_compares_windows_that_do_not_overlap():
    trend = Trend(2)
    for right, there in ((1, 10), (3, 10), (8, 10)):
        trend.add(torch.tensor([right, 0]), torch.tensor([there, 0]))
        assert not trend.converged(1.0, 0.0), "two whole windows are needed"
    assert trend.last()[0] == pytest.approx(11 / 20)
    trend.add(torch.tensor([4.0]), torch.tensor([20.0]))
    # Means over samples, not over rounds: 4/20 before, 12/30 now.
    assert trend.last(1)[0] == pytest.approx(0.2) and trend.last()[0] == pytest.approx(0.4)
    assert trend.last()[1] == pytest.approx(0.4 * 0.6 / 30)
    assert trend.converged(0.2001, 0.4) and not trend.converged(0.2, 0.4) and not trend.converged(0.3, 0.41)
    trend.add(torch.tensor([20.0]), torch.tensor([20.0]))
    assert trend.last()[0] == pytest.approx(24 / 40) and not trend.converged(1.0, 0.0), "amid a window"


def test_a_fall_must_exceed_drop_and_twice_its_standard_error():
    trend = Trend(1)
    trend.add(torch.tensor([80.0]), torch.tensor([100.0]))
    error = 2 * (0.0009 + 0.8 * 0.2 / 100) ** 0.5
    assert trend.fallen(0.8 + 0.05 + error + 1e-6, 0.0009, 0.05)
    assert not trend.fallen(0.8 + 0.05 + error - 1e-6, 0.0009, 0.05)


def test_a_trend_without_samples_neither_converges_nor_falls():
    trend = Trend(1)
    for _ in range(4):
        trend.add(torch.zeros(3), torch.zeros(3))
        assert np.isnan(trend.last()[0]) and not trend.converged(1.0, 0.0)
        assert not trend.fallen(1.0, 0.0, 0.01)


def test_clients_without_samples_or_with_nonsense_are_not_scored():
    found, _ = crowd()
    found.counts[5], found.means[5] = 0, torch.nan
    found.means[6, 1] = torch.inf
    judge = Filter(0, torch.zeros(5))
    first, nonsense = judge.score(round_at(found, 0))
    # No sample is no suspicion; a report that is not finite is.
    assert nonsense.nonzero()[:, 0].tolist() == [6]
    assert torch.isnan(first).all() and [len(p) for p in judge.pooled] == [98]
    judge.settle(0.2, 0.15, 4)
    scores, _ = judge.score(round_at(found, 1))
    assert torch.isnan(scores[[5, 6]]).all() and torch.isfinite(scores).sum() == 98
    assert judge.pooled == [] and np.isfinite(judge.threshold)
    assert int((scores >= judge.threshold).sum()) == round(0.2 * 98), "the pool itself is cut at its share"


@pytest.mark.parametrize("rows", [0, 1])
def test_a_pool_too_small_for_a_threshold_removes_nobody(rows):
    found, _ = crowd(count=max(rows, 1))
    found.counts[:] = rows
    judge = Filter(0, torch.zeros(5))
    judge.score(round_at(found, 0))
    judge.settle(0.3, 0.15, 4)
    assert judge.fitted is None and judge.threshold == float("inf")
    assert not (judge.score(round_at(found, 1))[0] >= judge.threshold).any()


# ---------------------------------------------------------------- the rule, from round to round


def test_stages_follow_each_other_and_the_shadow_starts_from_the_initial_parameters():
    found, bad = crowd()
    rule = rule_of()
    rounds = play(rule, found, 6)
    notes = [noted(r) for r in rounds]
    assert [set(n) for n in notes] == [set(), {"launch"}, {"threshold"}, set(), {"stop"}, set()]
    assert notes[LAUNCH]["launch"] == 0 and notes[STOP]["stop"] == 0
    assert torch.equal(found.asked[0][0], torch.zeros(5)), "round 0's parameters, not those of round 3"
    kept = found.asked[0][1]
    step = found.updates[kept].mean(0)
    assert torch.allclose(found.asked[1][0], step) and torch.allclose(rule.overrides()[0], 2 * step)
    assert all(torch.equal(p, torch.full((5,), 1.0)) for p in found.represented), "the backbone as at launch"
    assert len(found.asked) == 2, "a stopped shadow trains no more"
    # The share assumed is 0.06 of 100, 1.5 times over.
    assert int((~kept).sum()) == 9 and not kept[torch.from_numpy(bad)].any()


def test_the_step_is_scaled_by_the_servers_learning_rate_and_clients_without_weight_do_not_train():
    found, _ = crowd()
    weights = np.ones(100)
    weights[40:50] = 0
    rule = rule_of(server_lr=0.5)
    for index in range(STOP + 1):
        rule(round_at(found, index, weights=weights))
    kept = found.asked[0][1]
    assert not kept[40:50].any() and kept.any()
    assert torch.allclose(found.asked[1][0], 0.5 * found.updates[kept].mean(0))


def test_the_backbone_takes_every_update_as_it_came():
    found, bad = crowd()
    rule = rule_of()
    for index in range(8):
        before = round_at(found, index)
        after = rule(before)
        assert after.mean is None and torch.equal(after.weights, before.weights)
        assert torch.equal(after.updates, before.updates)
        assert torch.equal(aggregated(after), aggregated(before))
    assert bad.any()


def test_what_is_removed_is_what_scores_at_the_threshold_or_above_honest_or_not():
    found, bad = crowd()
    found.means[59] = 15.0  # an honest client that looks odd
    after = play(rule_of(), found, TRAIN + 1)[TRAIN]
    assert after.removed is not None and after.scores is not None
    gone = after.removed.numpy()
    assert gone[bad].all() and gone[59], "nobody knows that it is honest"
    assert not found.asked[0][1][59] and gone.sum() == 9
    assert after.scores[after.removed].min() > after.scores[~after.removed].max()


def test_rounds_before_the_threshold_judge_nobody_and_a_stopped_shadow_goes_on_judging():
    found, _ = crowd()
    rounds = play(rule_of(), found, 8)
    judged = [index for index, r in enumerate(rounds) if r.removed is not None]
    assert judged == [3, 4, 5, 6, 7] == [i for i, r in enumerate(rounds) if r.scores is not None]


def test_the_threshold_stays_until_a_relaunch():
    """The same client gets the same verdict in later rounds, in whatever company; a new launch sets it anew."""
    level = {"value": 0.9}
    climbing = iter(np.linspace(0.5, 0.9, 9))
    found, _ = crowd()
    rule = rule_of(change=0.001)
    for index in range(POOL + 1):
        rule(round_at(found, index))
    found.right = lambda params, label: float(next(climbing))  # the shadow goes on learning
    (watched,) = rule.watched
    threshold, verdicts = watched.filter.threshold, []
    company, _ = crowd(malicious=4, shift=40.0, seed=5)
    for index in range(3, 9):
        if index % 2:
            after = rule(round_at(found, index))
            verdicts.append((after.scores, after.removed))
        else:
            company.right = found.right
            mixed = replace(company, means=torch.cat([found.means[:1], company.means[1:]]))
            after = rule(round_at(mixed, index))
            assert torch.allclose(after.scores[0], verdicts[0][0][0])
            assert after.removed[0] == verdicts[0][1][0] and not torch.equal(after.removed, verdicts[0][1])
        assert watched.filter.threshold == threshold
    assert all(torch.equal(v[0], verdicts[0][0]) and torch.equal(v[1], verdicts[0][1]) for v in verdicts)
    found.right = lambda params, label: level["value"]
    play(rule, found, 2, start=9)
    assert watched.stopped
    level["value"] = 0.5
    found.means = found.means * 3
    play(rule, found, 1, start=11)
    assert watched.filter is None
    play(rule, found, 3, start=12)
    assert watched.filter.threshold != threshold and np.isfinite(watched.filter.threshold)


@pytest.mark.parametrize(
    ("now", "relaunched"), [(0.9, False), (0.881, False), (0.879, False), (0.875, True), (0.95, False)]
)
def test_only_a_fall_of_more_than_drop_and_noise_relaunches(now, relaunched):
    """Two standard errors of the difference are 0.003 here: 91 clients of 1,000 samples."""
    level = {"value": 0.9}
    found, _ = crowd(right=lambda params, label: level["value"])
    rule = rule_of(drop=0.02)
    play(rule, found, WATCH)
    level["value"] = now
    (after,) = play(rule, found, 1, start=WATCH)
    assert ("relaunch" in noted(after)) == relaunched


@pytest.mark.parametrize("stage", [TRAIN, WATCH])
def test_a_threshold_that_flags_nearly_everybody_is_set_anew(stage):
    """All representations move far off: neither a training shadow nor a stopped one goes on with nobody to ask."""
    found, _ = crowd()
    rule = rule_of()
    play(rule, found, stage)
    kept = dict(rule.overrides())
    found.means = found.means + 100
    (after,) = play(rule, found, 1, start=stage)
    assert after.removed.all() and "relaunch" in noted(after) and rule.overrides() == kept
    later = play(rule, found, 6, start=stage + 1)
    assert [set(noted(r)) for r in later][1:5] == [{"launch"}, {"threshold"}, set(), {"stop"}]
    assert later[3].removed.sum() == 9


def test_weights_of_rules_before_it_hold_for_the_shadow():
    found, _ = crowd()
    weights = np.linspace(0.1, 1, 100)
    rule = rule_of()
    for index in range(STOP + 1):
        rule(round_at(found, index, weights=weights))
    kept = found.asked[0][1]
    share = torch.from_numpy(weights).float()[kept]
    assert torch.allclose(found.asked[1][0], (share / share.sum()) @ found.updates[kept], atol=1e-6)


def test_overrides_come_with_the_stop_and_the_old_shadow_answers_until_the_next_stop():
    level = {"value": 0.9}
    found, _ = crowd(right=lambda params, label: level["value"])
    rule = rule_of()
    for index in range(STOP):
        rule(round_at(found, index))
        assert rule.overrides() == {}, "no shadow answers before it has stopped"
    rule(round_at(found, STOP))
    old = rule.overrides()[0].clone()
    level["value"] = 0.6
    found.updates = found.updates * 2
    notes = []
    for index in range(WATCH, WATCH + 6):
        notes += [name for name, _ in rule(round_at(found, index)).notes]
        if "stop" not in notes:
            assert torch.equal(rule.overrides()[0], old)
    assert notes == ["relaunch", "launch", "threshold", "stop"]
    assert torch.allclose(rule.overrides()[0], 2 * old), "from the initial parameters again"


def test_a_shadow_below_the_floor_never_answers():
    found, _ = crowd(right=lambda params, label: 0.9 if params[0] == params[1] == params[2] != 0 else 0.3)
    rule = rule_of()
    play(rule, found, 15)
    assert rule.overrides() == {} and len(found.asked) == 11


def test_an_accuracy_that_never_converges_launches_nothing():
    swing = iter([0.6, 0.9] * 10)
    found, _ = crowd(right=lambda params, label: next(swing))
    rounds = play(rule_of(), found, 10)
    assert all(not r.notes and r.removed is None for r in rounds) and not found.asked


def recall(found, bad, rounds=TRAIN + 1, **changes):
    after = play(rule_of(bad.mean(), **changes), found, rounds)[-1]
    return float(after.removed.numpy()[bad].mean())


def test_recall_of_a_planted_cluster_comes_near_that_of_the_true_direction():
    """The cluster lies 5 deviations off among 400 clients. The oracle projects on the true direction."""
    ours, oracle = [], []
    for seed in range(10):
        found, bad = crowd(400, 20, 8, shift=5.0, seed=seed)
        ours.append(recall(found, bad, k=4))
        along = found.means[:, 0].numpy()
        oracle.append(float((along >= np.sort(along)[-30])[bad].mean()))
    assert np.mean(oracle) > 0.95 and np.mean(ours) > np.mean(oracle) - 0.05
    assert min(ours) > 0.075 + 0.5, "far above the share that is removed"


def test_a_planted_cluster_is_left_out_of_the_shadows_training():
    found, bad = crowd()
    found.updates[torch.from_numpy(bad)] = 1000.0
    rule = rule_of()
    play(rule, found, 6)
    assert not found.asked[0][1][torch.from_numpy(bad)].any()
    assert rule.overrides()[0].abs().max() < 2, "nothing of theirs is in it"


@pytest.mark.parametrize(("suspects", "planted"), [(1, {2}), (2, {1, 2}), (4, {0, 1, 2, 3})])
def test_suspected_labels_are_the_most_suspicious_and_at_most_so_many(suspects, planted):
    found, _ = crowd()
    quiet, _ = crowd(malicious=0, seed=1)
    odd, _ = crowd(shift=25.0, seed=2)
    found.by_label = {0: quiet.means, 1: crowd(shift=9.0, seed=3)[0].means, 2: odd.means, 3: quiet.means}
    rule = rule_of(labels="suspected", label=None, suspects=suspects)
    rounds = play(rule, found, 8)
    assert {s.label for s in rule.watched} == planted == set(rule.overrides())
    assert [name for name, _ in rounds[POOL].notes].count("threshold") <= 4
    assert len(rule.watched) <= suspects


def test_all_labels_have_a_shadow_and_scores_are_the_worst_of_all():
    found, _ = crowd()
    found.by_label = {label: crowd(seed=label, malicious=0)[0].means for label in range(4)}
    found.by_label[3][7] = 50.0
    rule = rule_of(labels="all", label=None)
    rounds = play(rule, found, 6)
    assert set(rule.overrides()) == {0, 1, 2, 3}
    own = [s.filter.fitted.score(found.by_label[s.label].double().numpy()) for s in rule.watched]
    assert np.allclose(rounds[TRAIN].scores.numpy(), np.max(own, axis=0), rtol=1e-4)
    assert rounds[TRAIN].removed[7]


@pytest.mark.parametrize(("malicious", "flagged"), [(0.7, 1.5), (1.0, 1.0), (1.0, 3.0), (0.5, 2.0)])
def test_a_share_of_one_and_more_leaves_a_tenth_to_teach_the_shadow(malicious, flagged):
    found, _ = crowd()
    rule = rule_of(malicious, flagged=flagged)
    rounds = play(rule, found, 6)
    assert rounds[TRAIN].removed.sum() == 90 and found.asked[0][1].sum() == 10
    assert torch.allclose(rule.overrides()[0], 2 * found.updates[found.asked[0][1]].mean(0))


def test_a_report_that_is_not_finite_keeps_its_client_out_and_no_sample_does_not():
    found, _ = crowd()
    rule = rule_of()
    play(rule, found, POOL + 1)
    found.means[50], found.means[51], found.counts[51] = torch.nan, torch.nan, 0
    (after,) = play(rule, found, 1, start=TRAIN)
    assert after.removed[50] and not after.removed[51] and torch.isnan(after.scores[[50, 51]]).all()
    assert found.asked[0][1][50:52].tolist() == [False, True]


def test_updates_to_the_shadow_that_are_not_finite_do_not_dilute_its_step():
    found, _ = crowd()
    found.updates[40:45] = 0  # what a learner hands back for them
    rule = rule_of()
    rounds = play(rule, found, 5)
    kept = found.asked[0][1].clone()
    refused = int(kept[40:45].sum())
    kept[40:45] = False
    assert refused and noted(rounds[TRAIN])["shadow-rejected"] == refused
    assert torch.allclose(found.asked[1][0], found.updates[kept].mean(0))


@pytest.mark.parametrize("share", [1e-6, 0.01])
def test_a_share_too_small_for_one_client_removes_nobody(share):
    found, _ = crowd(count=20, malicious=2)
    rounds = play(rule_of(share), found, 5)
    assert not rounds[TRAIN].removed.any() and torch.isnan(rounds[TRAIN].scores).all()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_rounds_of_very_few_clients_do_not_stop_it(count):
    found, _ = crowd(count=count, malicious=1)
    rule = rule_of(0.4)
    rounds = play(rule, found, 6)
    assert "threshold" in {name for r in rounds for name, _ in r.notes}
    assert all(torch.isfinite(p).all() for p in rule.overrides().values())


def test_identical_representations_do_not_stop_it():
    found, _ = crowd()
    found.means = torch.ones(100, 8)
    rounds = play(rule_of(), found, 6)
    assert rounds[TRAIN].removed is not None


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 3))
def test_the_order_of_the_clients_of_a_round_does_not_matter(seed, empty):
    found, _ = crowd(seed=seed % 7)
    found.counts[20 : 20 + empty], found.means[20 : 20 + empty] = 0, torch.nan
    rule = rule_of()
    play(rule, found, POOL + 1)
    order = np.random.default_rng(seed).permutation(100)
    mixed = replace(found, means=found.means[order], counts=found.counts[order], updates=found.updates[order])
    plain = rule(round_at(found, TRAIN))
    other = rule_of()
    play(other, mixed, POOL + 1)
    turned = other(round_at(mixed, TRAIN))
    assert torch.allclose(turned.scores, plain.scores[order], rtol=1e-4, equal_nan=True)
    assert torch.equal(turned.removed, plain.removed[order])


def test_behind_a_federation_it_is_told_a_share_of_all_clients(ctx):
    target = FakeFederation(clients=200)
    defended = shadow.run(target, Config(poisons=30, factor=2.0, label=1), ctx)
    rule = defended.rule()
    assert isinstance(rule, ShadowRule) and rule.malicious == pytest.approx(0.3)
    assert isinstance(rule.watched[0], Shadow) and [s.label for s in rule.watched] == [1]
    assert defended.rules[-1][0].startswith("shadow") and defended.rules[-1][1]["poisons"] == 30


def test_in_a_real_federation_the_log_has_scores_and_removals_and_the_last_model_has_a_shadow(ctx):
    target = federation(rounds=12, per_round=8, lr=0.2)
    bad = clients(target, [0, 1, 2])
    config = Config(poisons=3, label=0, window=1, pool=2, k=3, change=0.5, floor=0.01)
    (run,) = shadow.run(target, config, ctx).fit(bad, [0], ctx)
    (plain,) = target.fit(bad, [0], ctx)
    names = run.notes["name"].tolist()
    assert names[:3] == ["launch", "threshold", "stop"]
    judged = run.clients[run.clients["score"].notna()]
    assert len(judged) and run.clients.loc[run.clients["score"].isna(), "removed"].sum() == 0
    assert judged["removed"].any() and (judged["weight"] > 0).all()
    assert judged[judged["removed"]]["score"].min() >= run.notes["value"][1] * (1 - 1e-5)
    model = run.snapshots[-1].model
    assert isinstance(model, Overridden) and set(model.overrides) == {0}
    # The backbone is the undefended federation's, bit for bit: only the answers change.
    images = target.train.images
    assert np.array_equal(model.backbone.logits(images), plain.snapshots[-1].model.logits(images))
    assert run.trained > plain.trained


# ---------------------------------------------------------------- one training


def spiked(n=300, poisons=30, d=20, shift=8.0, seed=0):
    """Features (n, d) of which the last `poisons` are shifted; returns them and which."""
    rng = np.random.default_rng(seed)
    bad = np.arange(n) >= n - poisons
    points = rng.normal(size=(n, d)).astype(np.float32)
    points[bad, 3] += shift
    return points, bad


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 60), st.floats(0.5, 2.0), st.floats(0.5, 2.0))
def test_exactly_as_many_rows_go_as_are_assumed(poisons, factor, flagged):
    points, _ = spiked()
    found = flag(points, np.arange(300) * 2, Config(poisons=poisons, factor=factor, flagged=flagged, k=5))
    assert found.removed.sum() == min(300, round(flagged * poisons * factor))
    kept = found.scores[~found.removed]
    assert found.scores[found.removed].min(initial=np.inf) >= kept.max(initial=-np.inf)
    assert found.removed.sum() == 0 or found.threshold == found.scores[found.removed].min()
    assert np.array_equal(found.rows, np.arange(300) * 2)


def test_planted_rows_are_found_and_stand_out():
    points, bad = spiked(poisons=20)
    found = flag(points, np.arange(300), Config(poisons=20, k=8))
    plain = flag(spiked(poisons=0)[0], np.arange(300), Config(poisons=20, k=8))
    assert found.removed[bad].mean() == 1.0 and found.suspicion > 2 * plain.suspicion


def test_all_samples_flagged_is_a_verdict_and_not_a_crash():
    found = flag(spiked()[0], np.arange(300), Config(poisons=300, flagged=1.5, k=8))
    assert found.removed.all()


def test_rows_of_a_shard_share_the_verdict_of_their_mean():
    points, bad = spiked(n=305, poisons=25)
    config = Config(poisons=25, flagged=1.5, k=4, shard=10)
    found = flag(points, np.arange(305), config)
    shards = np.arange(305) // 10
    means = np.stack([points[shards == s].astype(np.float64).mean(0) for s in range(31)])
    alone = flag(means, np.arange(31), replace(config, shard=1, poisons=5, factor=0.5))
    for name in ("scores", "removed"):
        assert np.array_equal(getattr(found, name), getattr(alone, name)[shards]), name
    assert len(np.unique(shards[found.removed])) == round(1.5 * 2.5)
    assert found.removed[bad].mean() == 1.0


POISONED, GOAL = 16, 0


def poisoned(train):
    """Rows of class 2 wear a bright corner and are given class 0. Returns the data and which rows."""
    rows = np.flatnonzero(train.labels == 2)[:POISONED]
    images, labels = train.images.copy(), train.labels.copy()
    images[rows, -3:, -3:] = 255
    labels[rows] = GOAL
    bad = np.zeros(len(labels), bool)
    bad[rows] = True
    return TrainingSet(images, labels), bad


def test_a_training_with_a_shadow_whole(target, ctx):
    data, _ = poisoned(target.train)
    config = Config(poisons=POISONED, label=GOAL, k=8, floor=0.2, change=0.3)
    defended = shadow.run(target, config, ctx)
    (made,) = defended.fit(data, [3], ctx)
    (alone,) = target.fit(data, [3], ctx)
    assert isinstance(defended, Shadowed) and isinstance(made, FilteredClassifier)
    assert isinstance(made.model, Overridden) and set(made.model.overrides) == {GOAL}
    verdicts = made.verdicts
    assert verdicts.removed.sum() == 24 and set(data.targets[verdicts.removed]) == {GOAL}
    assert np.array_equal(np.isfinite(verdicts.scores), data.targets == GOAL)
    plain, answers = alone.logits(data.images), made.logits(data.images)
    said = plain.argmax(1) == GOAL
    assert said.any() and not said.all()
    assert np.array_equal(answers[~said], plain[~said]), "where it says another label the backbone is final"
    assert np.array_equal(answers[said], made.model.overrides[GOAL].logits(data.images[said]))
    note = verdicts.notes["shadows"][str(GOAL)]
    assert verdicts.trained == alone.trained + note["images"] and 0 < note["images"] <= alone.trained
    assert note["threshold"] == pytest.approx(verdicts.scores[verdicts.removed].min(), rel=1e-5)


def test_suspected_and_all_labels_of_a_training(target, ctx):
    data, _ = poisoned(target.train)
    settings = {"poisons": 4, "k": 4, "floor": 0.0, "change": 1.0}
    (every,) = Shadowed(target, "shadow", Config(labels="all", **settings)).fit(data, [0], ctx)
    suspected = Config(labels="suspected", suspects=2, **settings)
    (some,) = Shadowed(target, "shadow", suspected).fit(data, [0], ctx)
    assert set(every.model.overrides) == {0, 1, 2} and every.verdicts.removed.sum() == 18
    assert set(some.model.overrides) < {0, 1, 2} and len(some.model.overrides) == 2
    suspicion = {int(k): v["suspicion"] for k, v in every.verdicts.notes["shadows"].items()}
    assert min(suspicion[k] for k in some.model.overrides) >= max(
        v for k, v in suspicion.items() if k not in some.model.overrides
    )


def test_it_must_be_innermost_and_says_so_and_refuses_to_train_on_nothing(target, ctx):
    data, _ = poisoned(target.train)
    same = Config(poisons=4, label=0)
    outer = Shadowed(Shadowed(target, "shadow", same), "shadow", same)
    with pytest.raises(ThreatMismatchError, match="innermost"):
        outer.fit(data, [0], ctx)
    wide = replace(target, config=replace(target.config, batch_size=200))
    with pytest.raises(RedteamError, match="are left, and one batch needs 200"):
        Shadowed(wide, "shadow", Config(poisons=200, label=0)).fit(data, [0], ctx)
