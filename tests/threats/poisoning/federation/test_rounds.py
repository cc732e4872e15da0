"""Runs of a federation, and what a server may ask."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from redteam.core.errors import ArtifactError, ConfigError, LimitReachedError, RedteamError
from redteam.core.seeding import SeedPath
from redteam.data.toys import stripes_dataset
from redteam.threats.poisoning.federation.conduct import Conduct
from redteam.threats.poisoning.federation.holdings import Holdings
from redteam.threats.poisoning.federation.learner import RoundLearner, Setup, not_finite
from redteam.threats.poisoning.federation.local import Recipe
from redteam.threats.poisoning.federation.nouns import Federation, Round, aggregated
from redteam.threats.poisoning.federation.rounds import sample
from redteam.threats.poisoning.federation.target import make
from redteam.threats.poisoning.filtering import Overridden
from tests.conftest import context
from tests.threats.poisoning.federation.helpers import clients, federation


def flat(snapshot) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in snapshot.model.model.parameters()])


def one(target, malicious=None, ctx=None, seed=1):
    (run,) = target.fit(malicious, [seed], ctx or context())
    return run


class Watching:
    """A rule that keeps the rounds it saw and changes what `change` says."""

    def __init__(self, change=lambda round: round):
        self.seen, self.change = [], change

    def __call__(self, round):
        self.seen.append(round)
        return self.change(round)


def watched(target, change=lambda round: round):
    rule = Watching(change)
    return target.behind("watching", {}, lambda setting: rule), rule


# ---------------------------------------------------------------- runs


def test_a_run_is_what_the_protocol_says():
    target = federation()
    assert isinstance(target, Federation)
    run = one(target)
    assert [s.round for s in run.snapshots] == [2, 4]
    assert list(run.clients) == ["round", "client", "malicious", "weight", "removed", "score", "rejected"]
    assert len(run.clients) == 24 and not run.clients[["malicious", "rejected", "removed"]].any().any()
    assert np.allclose(run.clients["weight"], 1 / 6) and run.clients["score"].isna().all()
    assert (run.clients.groupby("round")["client"].nunique() == 6).all()
    assert run.trained == 4 * 6 * 12 * 2 and run.snapshots[-1].model.trained == run.trained
    assert run.notes.empty and list(run.notes) == ["round", "name", "value"]


def test_the_last_round_leaves_a_snapshot():
    assert [s.round for s in one(federation(rounds=5, snapshot_every=2)).snapshots] == [2, 4, 5]


def test_a_federation_learns():
    dataset = stripes_dataset(n=180)
    run = one(federation(rounds=15, lr=0.2))
    said = run.snapshots[-1].model.logits(dataset.test.images).argmax(1)
    assert (said == dataset.test.labels).mean() > 0.9


def test_a_run_is_determined_by_its_seed():
    target = federation()
    bad = clients(target, [1, 4, 7], conduct={"rate": 0.5, "epochs": 2})
    a, b, c = one(target, bad), one(target, bad), one(target, bad, seed=2)
    assert torch.equal(flat(a.snapshots[-1]), flat(b.snapshots[-1]))
    pd.testing.assert_frame_equal(a.clients, b.clients)
    assert not torch.equal(flat(a.snapshots[-1]), flat(c.snapshots[-1]))


def test_one_by_one_gives_the_same_run():
    runs = [one(federation(together=together)) for together in (True, False)]
    a, b = (flat(r.snapshots[-1]) for r in runs)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_momentum_of_the_server_in_closed_form():
    target, rule = watched(federation(server_momentum=0.6, server_lr=0.5))
    run = one(target)
    params = [r.params for r in rule.seen] + [flat(run.snapshots[-1])]
    velocity = torch.zeros_like(params[0])
    for index, seen in enumerate(rule.seen):
        velocity = 0.6 * velocity + seen.updates.mean(0)
        torch.testing.assert_close(params[index + 1], params[index] + 0.5 * velocity, rtol=1e-5, atol=1e-7)


def test_rules_decide_and_are_written_down():
    def change(r: Round) -> Round:
        weights = torch.zeros(6)
        weights[0], weights[2] = 3.0, 1.0
        return replace(
            r, weights=weights, scores=torch.arange(6.0), notes=(*r.notes, ("kept", 2.0)),
            removed=torch.tensor([True] + [False] * 5),
        )  # fmt: skip

    target, rule = watched(federation(rounds=1), change)
    run = one(target)
    (seen,) = rule.seen
    expected = seen.params + 0.75 * seen.updates[0] + 0.25 * seen.updates[2]
    torch.testing.assert_close(flat(run.snapshots[0]), expected)
    assert run.clients["weight"].tolist() == [0.75, 0, 0.25, 0, 0, 0]
    assert run.clients["removed"].tolist() == [True, True, False, True, True, True]
    assert run.clients["score"].tolist() == list(range(6))
    assert run.notes.to_dict("list") == {"round": [0], "name": ["kept"], "value": [2.0]}


def test_a_rule_may_make_the_mean_itself():
    target, rule = watched(federation(rounds=1), lambda r: replace(r, mean=torch.ones_like(r.params)))
    run = one(target)
    assert torch.equal(flat(run.snapshots[0]), rule.seen[0].params + 1) and run.notes.empty


def test_weights_that_are_none_are_refused():
    target, _ = watched(federation(rounds=1), lambda r: replace(r, weights=r.weights * torch.nan))
    with pytest.raises(RedteamError, match="expected finite ones from 0 on"):
        one(target)


@given(st.permutations(range(6)), st.integers(0, 50))
def test_the_order_of_clients_does_not_change_the_average(perm, seed):
    g, p = SeedPath(seed).torch(), torch.tensor(perm)
    updates, weights = torch.randn(6, 9, generator=g), torch.rand(6, generator=g)

    def mean(order: torch.Tensor) -> torch.Tensor:
        parts = {"clients": np.arange(6)[order], "updates": updates[order], "weights": weights[order]}
        return aggregated(Round(index=0, params=torch.zeros(9), learner=None, generator=g, **parts))

    torch.testing.assert_close(mean(p), mean(torch.arange(6)))


def test_overrides_answer_at_every_snapshot_from_where_they_are():
    class Shadow(Watching):
        def overrides(self):
            return {} if len(self.seen) <= 2 else {1: torch.full_like(self.seen[0].params, 0.5)}

    rule = Shadow()
    run = one(federation().behind("shadow", {}, lambda setting: rule))
    first, last = (s.model for s in run.snapshots)
    assert not isinstance(first, Overridden) and isinstance(last, Overridden)
    assert all((p == 0.5).all() for p in last.overrides[1].model.parameters())


# ---------------------------------------------------------------- malicious clients


def test_updates_that_are_not_finite_are_rejected_before_any_rule_and_written_down():
    target, rule = watched(federation())
    bad = clients(target, [0, 3, 6, 9], conduct={"scale": 1e39})
    run = one(target, bad)
    rows = run.clients
    assert (rows.groupby("round")["malicious"].sum() == 2).all()
    assert (rows["rejected"] == rows["malicious"]).all() and not rows["removed"].any()
    assert (rows.loc[rows["rejected"], "weight"] == 0).all()
    assert np.allclose(rows.loc[~rows["rejected"], "weight"], 1 / 4)
    assert run.notes.to_dict("list") == {"round": [0, 1, 2, 3], "name": ["rejected"] * 4, "value": [2.0] * 4}
    for seen in rule.seen:
        assert seen.updates.isfinite().all() and (seen.updates[seen.weights == 0] == 0).all()
    assert flat(run.snapshots[-1]).isfinite().all()


def test_with_nothing_kept_the_model_stays():
    target, rule = watched(federation(rounds=2, snapshot_every=1, per_round=4, clients=4))
    run = one(target, clients(target, [0, 1, 2, 3], conduct={"scale": 1e39}))
    assert torch.equal(flat(run.snapshots[1]), rule.seen[0].params)
    assert run.notes["name"].tolist() == ["rejected", "nothing-kept"] * 2
    assert (run.clients["weight"] == 0).all()


def test_large_finite_updates_are_not_rejected():
    updates = torch.full((3, 4), 3e38)
    updates[1, 2], updates[2, 0] = torch.nan, -torch.inf
    assert not_finite(updates).tolist() == [False, True, True]


def test_no_malicious_client_is_an_honest_federation_and_shares_its_stage(tmp_path):
    target, ctx = federation(), context(stage_dir=tmp_path)
    one(target, clients(target, []), ctx)
    one(target, None, ctx)
    assert ctx.costs.resumed == ["federation"]


@given(
    total=st.integers(4, 40), share=st.floats(0.05, 1), malicious=st.floats(0, 0.5), seed=st.integers(0, 99)
)
def test_fixed_presence_is_the_same_share_of_each_round(total, share, malicious, seed):
    per_round, rng = max(1, round(share * total)), np.random.default_rng(seed)
    ids = np.sort(rng.choice(total, int(malicious * total), replace=False))
    target = federation(clients=total, per_round=per_round, rounds=1)
    chosen, bad = sample(total, per_round, clients(target, ids.tolist()), rng)
    assert len(np.unique(chosen)) == per_round and np.array_equal(bad, np.isin(chosen, ids))
    assert bad.sum() == round(len(ids) / total * per_round) or per_round - bad.sum() == total - len(ids)


def test_drawn_presence_varies_about_the_same_share():
    target = federation()
    bad = clients(target, [0, 3, 6, 9], presence="drawn")
    counts = [sample(12, 6, bad, SeedPath(s).numpy())[1].sum() for s in range(400)]
    # Hypergeometric: mean 2, variance 6 * (1/3) * (2/3) * 6/11 = 0.73, so the mean of 400 is within 0.17 (4 sd).
    assert abs(np.mean(counts) - 2) < 0.17 and abs(np.var(counts) - 0.727) < 0.2


def test_only_those_that_act_are_logged_as_malicious():
    target = federation(rounds=12)
    run = one(target, clients(target, [0, 3, 6, 9], conduct={"rate": 0.25}))
    acting = run.clients.groupby("round")["malicious"].sum()
    assert set(acting) <= {0, 1} and 1 <= acting.sum() <= 11
    assert set(run.clients.loc[run.clients["malicious"], "client"]) <= {0, 3, 6, 9}
    calm = one(target, clients(target, [0, 3, 6, 9], conduct={"rate": 0.0}))
    assert not calm.clients["malicious"].any()


def learner(target, conduct, acting, malicious=None, ids=None, shown_clean=False):
    ids = np.arange(6) if ids is None else ids
    acting = np.array(acting, bool)
    held = Holdings(target.train, target.facts, torch.device("cpu"), target.drift, target.dealt, malicious)
    trained = held.of(ids, acting, 0)
    shown = held.of(ids, np.zeros_like(acting), 0) if shown_clean else trained
    setup = Setup(
        network=target.network(SeedPath(5)), passes=2, conduct=conduct, classes=3,
        recipe=Recipe(batch_size=5, lr=0.1, together=True),
    )  # fmt: skip
    return RoundLearner(setup, trained, shown, torch.from_numpy(acting), SeedPath(6).torch()), setup


ACTING = [False, True, False, False, True, False]
ALL = torch.ones(6, dtype=torch.bool)


def test_scale_and_bound_are_exact():
    target = federation()
    bad = clients(target, [1, 4])

    def updates(**conduct):
        one, setup = learner(target, Conduct(**conduct), ACTING, bad)
        return one.updates(setup.network.flat(), ALL)

    plain, acting = updates(), torch.tensor(ACTING)
    scaled, bounded, loose = updates(scale=7.0), updates(scale=7.0, bound=1.5), updates(scale=2.0, bound=1e6)
    assert torch.equal(scaled[acting], plain[acting] * 7) and torch.equal(scaled[~acting], plain[~acting])
    norms = bounded.norm(dim=1)
    median = plain[~acting].norm(dim=1).quantile(0.5)
    torch.testing.assert_close(norms[acting], (1.5 * median).expand(2))
    torch.testing.assert_close(
        bounded[acting] / norms[acting, None], plain[acting] / plain[acting].norm(dim=1)[:, None]
    )
    assert torch.equal(loose[acting], plain[acting] * 2)


def test_more_local_epochs_for_those_that_act_alone():
    target = federation()
    bad = clients(target, [1, 4])
    usual, setup = learner(target, Conduct(), ACTING, bad)
    longer, _ = learner(target, Conduct(epochs=3), ACTING, bad)
    a, b = (one.updates(setup.network.flat(), ALL) for one in (usual, longer))
    acting = torch.tensor(ACTING)
    torch.testing.assert_close(a[~acting], b[~acting], rtol=1e-5, atol=1e-7)
    assert (b[acting].norm(dim=1) > 1.2 * a[acting].norm(dim=1)).all()
    assert longer.images_trained == 12 * 2 * (4 + 2 * 3) and usual.images_trained == 12 * 2 * 6


@pytest.mark.parametrize("epochs", [1, 3])
def test_the_server_may_train_some_from_elsewhere(epochs):
    target = federation()
    bad = clients(target, [1, 4])
    asked, setup = learner(target, Conduct(epochs=epochs, scale=2.0), ACTING, bad)
    params = setup.network.flat() * 0.9
    chosen = torch.tensor([True, True, False, False, False, True])
    some, every = asked.train(params, chosen), asked.updates(params, ALL)
    torch.testing.assert_close(some[chosen], every[chosen], rtol=1e-5, atol=1e-7)
    assert (some[~chosen] == 0).all() and (some[chosen].norm(dim=1) > 0).all()
    assert (asked.train(params, torch.zeros_like(chosen)) == 0).all()
    assert (asked.train(params * torch.nan, ALL) == 0).all()


def test_answers_are_those_of_the_clients_own_samples():
    target = federation()
    bad = clients(target, [1, 4])
    asked, setup = learner(target, Conduct(), ACTING, bad)
    params, share = setup.network.flat(), asked._trained
    means, counts = asked.represent(params, 0)
    right, seen = asked.accuracy(params, 0)
    assert counts.tolist() == (share.labels == 0).sum(1).tolist() == seen.tolist()
    for k in range(6):
        own = share.images[k][share.labels[k] == 0]
        torch.testing.assert_close(
            means[k], setup.network.features(params, own).mean(0), rtol=1e-4, atol=1e-5
        )
        assert int(right[k]) == int((setup.network.logits(params, own).argmax(1) == 0).sum())
    # Stamped and relabelled images are among what a malicious client answers from.
    assert counts[1] > counts[0]


def test_forged_answers_are_those_of_clean_data_and_training_is_not():
    target = federation()
    bad = clients(target, [1, 4])
    forging, setup = learner(target, Conduct(report="clean"), ACTING, bad, shown_clean=True)
    honest, _ = learner(target, Conduct(), [False] * 6)
    telling, _ = learner(target, Conduct(), ACTING, bad)
    params = setup.network.flat()
    for label in range(3):
        for mine, other in zip(
            forging.represent(params, label), honest.represent(params, label), strict=True
        ):
            assert torch.equal(mine, other)
    assert not torch.equal(telling.represent(params, 0)[1], honest.represent(params, 0)[1])
    assert torch.equal(forging.updates(params, ALL), telling.updates(params, ALL))


def test_a_run_hands_forged_answers_to_its_rules():
    answers = {}
    for report in ("true", "clean"):
        target, rule = watched(federation(rounds=1, per_round=12))
        one(target, clients(target, [1, 4], conduct={"report": report}))
        (seen,) = rule.seen
        answers[report] = seen.learner.represent(seen.params, 0)[1]
    assert (answers["true"][[1, 4]] > answers["clean"][[1, 4]]).all()
    assert answers["clean"].tolist() == [4] * 12


def test_a_client_without_samples_of_a_label_gives_a_row_of_nan():
    target = federation(split="dirichlet", concentration=0.05)
    asked, setup = learner(target, Conduct(), [False] * 6)
    params = setup.network.flat()
    for label in range(3):
        means, counts = asked.represent(params, label)
        right, seen = asked.accuracy(params, label)
        assert torch.equal(means.isnan().all(1), counts == 0) and torch.equal(counts, seen)
        assert (right[seen == 0] == 0).all()
    means, counts = asked.represent(params, 9)
    assert means.isnan().all() and (counts == 0).all()


# ---------------------------------------------------------------- stages and bad input


def test_a_run_comes_back_from_its_stage(tmp_path):
    class Shadow(Watching):
        def overrides(self):
            return {2: self.seen[0].params}

    def change(r: Round) -> Round:
        return replace(r, notes=(("seen", 1.0),))

    target = federation().behind("shadow", {"a": 1}, lambda setting: Shadow(change))
    bad = clients(target, [1, 4])
    ctx = context(stage_dir=tmp_path)
    first, again = one(target, bad, ctx), one(target, bad, ctx)
    assert ctx.costs.resumed == ["federation"] and len(list(tmp_path.glob("federation-*.npz"))) == 1
    for a, b in zip(first.snapshots, again.snapshots, strict=True):
        x = target.train.images
        assert a.round == b.round and np.array_equal(a.model.logits(x), b.model.logits(x))
        assert isinstance(b.model, Overridden)
    pd.testing.assert_frame_equal(first.clients, again.clients)
    pd.testing.assert_frame_equal(first.notes, again.notes)
    assert first.trained == again.trained > 0


def test_what_decides_a_run_is_in_its_fingerprint(tmp_path):
    base = federation()
    assert federation(victims=3).fingerprint() == base.fingerprint()
    others = [
        federation(lr=0.2), base.behind("a", {}, None), base.behind("a", {"k": 1}, None), federation(size=9),
        replace(base, facts=replace(base.facts, mean=(0.9,))),
    ]  # fmt: skip
    assert len({repr(t.fingerprint()) for t in [base, *others]}) == 6


def test_a_run_stops_when_its_time_is_up():
    from redteam.core.context import Limits

    ctx = context(limits=Limits(wall_s=0.0))
    with pytest.raises(LimitReachedError):
        one(federation(), None, ctx)


def test_clients_of_another_federation_are_refused():
    target = federation()
    good = clients(target, [1, 4])
    for change, message in (
        ({"labels": good.labels[:, :3], "stamped": good.stamped[:, :3]}, "another federation"),
        ({"ids": np.array([1, 12])}, "ids of malicious clients from 0 to 11"),
        ({"ids": np.array([4, 1])}, "ascending"),
        ({"labels": good.labels + 5}, "expected labels 0 to 2"),
        ({"conduct": {"scael": 2}}, "scael.*Did you mean 'scale'"),
        ({"conduct": {"rate": 1.5}}, "rate: expected at most 1"),
    ):
        with pytest.raises(ArtifactError, match=message):
            one(target, replace(good, **change))


def test_networks_with_batch_normalisation_are_refused_when_the_target_is_made(ctx):
    with pytest.raises(ConfigError, match="mlp or convnet"):
        make(stripes_dataset(), federation(model="cnn").config, ctx)
