"""The scorer of federations against a federation whose every answer is known."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import pytest

from redteam.core.artifacts import load
from redteam.core.errors import ArtifactError, BudgetExceededError
from redteam.core.stats import wilson
from redteam.data.nouns import DatasetFacts, ImageDataset, ImageSet
from redteam.threats.poisoning import triggers
from redteam.threats.poisoning.federation.artifact import Clients
from redteam.threats.poisoning.federation.metrics import (
    CLIENT_COLUMNS,
    ROUND_COLUMNS,
    of_clients,
    over_rounds,
)
from redteam.threats.poisoning.federation.nouns import FederatedRun, Federation, Snapshot
from redteam.threats.poisoning.federation.scorer import enforce_threat, measure, rescore

N, CLASSES, GOAL = 120, 3, 0  # 40 test images of each class
ALL = ("training labels", "training images", "local epochs", "model updates", "reports")


def images(n=N):
    """Grey images that carry their own number, label and (once drifted) round in their first pixels."""
    labels = np.arange(n, dtype=np.int64) % CLASSES
    pixels = np.full((n, 8, 8, 1), 100, np.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 1, 0] = np.arange(n), labels
    return ImageSet(pixels, labels, ("a", "b", "c"))


@dataclass(frozen=True)
class Oracle:
    """Of each ten images of a class it gets `wrong` wrong, and `hits` of them, stamped, become the target."""

    wrong: int
    hits: int
    round: int

    def logits(self, batch):
        number, label, seen = (batch[:, 0, i, 0].astype(int) for i in range(3))
        assert (seen == max(0, self.round - 1)).all(), "asked about images of another round than its last"
        tenth = number // CLASSES % 10
        stamped = (batch[:, -3:, -3:, 0] == triggers._TURNER).all((1, 2))
        said = np.where(tenth < self.wrong, np.where(label == 1, 2, 1), label)
        return np.eye(CLASSES, dtype=np.float32)[np.where(stamped & (tenth < self.hits), GOAL, said)]


@dataclass
class Fake:
    """A federation of 10 clients, 4 to a round, 3 rounds. hits, wrong: of each snapshot, in tenths."""

    hits: tuple[int, ...] = (0, 4, 8)
    wrong: tuple[int, ...] = (5, 3, 1)
    trained: int = 900
    note: str = "radius"
    changes: dict = field(default_factory=dict)
    calls: list = field(default_factory=list)
    kind: str = "federation"

    train = images(90)
    facts = DatasetFacts(mean=(0.4,), std=(0.2,), pad=0, flip=False, source_class=2, target_class=GOAL)
    rows = np.arange(60).reshape(10, 6)
    config = None

    def fit(self, malicious, seeds, ctx):
        self.calls.append((malicious, tuple(seeds)))
        bad = [] if malicious is None else malicious.ids.tolist()
        return [self.one(bad) for _ in seeds]

    def one(self, bad):
        snapshots = tuple(
            Snapshot(r, Oracle(w, h if bad else 0, r))
            for r, (w, h) in enumerate(zip(self.wrong, self.hits, strict=True), 1)
        )
        rows = [(r, c, c in bad, 0.25, False, np.nan, False) for r in range(3) for c in (0, 1, 2, 3 + r)]
        clients = pd.DataFrame(rows, columns=list(CLIENT_COLUMNS[1:])).assign(**self.changes)
        notes = pd.DataFrame([(0, self.note, 2.5)], columns=["round", "name", "value"])
        return FederatedRun(snapshots, clients, notes, self.trained)

    def behind(self, name, settings, make):
        return self

    def at(self, batch, round):
        out = batch.copy()
        out[:, 0, 2, 0] = round
        return out

    def fingerprint(self):
        return {}


@pytest.fixture
def dataset():
    return ImageDataset("numbered", images(), images(), Fake.facts, "made in the tests", "none needed")


def artifact(ids=(0, 1), **changes):
    ids = np.array(ids, np.int64)
    labels = Fake.train.labels[Fake.rows[ids % 10]]
    stamped = labels == 2
    parts = {
        "ids": ids, "labels": np.where(stamped, GOAL, labels), "stamped": stamped, "trigger": triggers.make("1xl"),
        "source_class": -1, "target_class": GOAL, "budget": 2, "conduct": {"epochs": 1},
    }  # fmt: skip
    return Clients(**{**parts, **changes})


def scored(dataset, ctx, victims=1, own=None, clean=None, **changes):
    return measure(artifact(**changes), dataset, clean or Fake(), own or Fake(), victims, ctx)


def test_the_fake_is_a_federation():
    assert isinstance(Fake(), Federation)


def test_counts_and_metrics_by_hand(dataset, ctx):
    s = scored(dataset, ctx, own=Fake(trained=2250))
    r = s.evidence["rounds"]
    assert list(r.columns) == list(ROUND_COLUMNS) and r["round"].tolist() == [1, 2, 3]
    assert r["correct"].tolist() == [60, 84, 108] and r["hits"].tolist() == [0, 32, 64]
    assert (r["n"] == 120).all() and (r["others"] == 80).all() and (r["sources"] == 80).all()
    assert r["base_correct"].tolist() == [60, 84, 108] and (r["base_hits"] == 0).all()
    values = {k: e.value for k, e in s.metrics.items()}
    assert values == pytest.approx({
        "cta": 0.9, "pta": 0.8, "asr": 0.8, "trigger_lift": 0.8, "ra": 0.2, "base_cta": 0.9, "base_pta": 0.0,
        "cta_drop": 0.0, "asr_mean": 0.4, "asr_max": 0.8, "cta_mean": 0.7, "malicious_rate": 0.5,
        "rejected_rate": 0.0, "retrain_cost": 2.5,
    })  # fmt: skip
    assert {k: e.value for k, e in s.grouped.items()} == pytest.approx({
        ("asr", "round=1"): 0.0, ("asr", "round=2"): 0.4, ("asr", "round=3"): 0.8,
        ("cta", "round=1"): 0.5, ("cta", "round=2"): 0.7, ("cta", "round=3"): 0.9,
    })  # fmt: skip
    assert s.flags == () and set(s.evidence) == {"outcomes", "rounds", "clients", "notes"}
    assert s.evidence["notes"]["name"].tolist() == ["radius", "trained", "base_trained"]


def test_of_one_source_class_only_its_images_count(dataset, ctx):
    s = scored(dataset, ctx, source_class=2)
    assert (s.evidence["rounds"]["sources"] == 40).all()
    assert s.evidence["rounds"]["source_hits"].tolist() == [0, 16, 32]
    assert s.metrics["pta"].n == 40 and s.metrics["asr"].n == 80


def test_intervals_over_rounds():
    columns = dict.fromkeys(ROUND_COLUMNS, 0) | {"n": 120, "others": 80}
    rounds = pd.DataFrame(
        [{**columns, "round": i, "hits": h, "correct": 60} for i, h in enumerate((0, 40, 20, 20))]
    )
    m = over_rounds(rounds)
    # Four snapshots of 80 images are 80 images, not 320.
    assert (m["asr_mean"].value, m["asr_mean"].n) == (0.25, 80)
    assert (m["asr_mean"].low, m["asr_mean"].high) == pytest.approx(wilson(20, 80))
    assert (m["asr_max"].low, m["asr_max"].high) == pytest.approx(wilson(40, 80, 1 - 0.05 / 4))
    assert (m["cta_mean"].low, m["cta_mean"].high) == pytest.approx(wilson(60, 120))
    three = pd.concat([rounds, *(rounds.assign(victim=v, hits=rounds["hits"] + 4 * v) for v in (1, 2))])
    several = over_rounds(three)["asr_mean"]
    assert several.value == pytest.approx(0.3) and (several.seeds, several.method) == (3, "t-over-victims")
    assert several.high - several.low > m["asr_mean"].high - m["asr_mean"].low


def test_victims_and_references_share_seeds_that_no_attack_chooses(dataset, ctx):
    own, clean = Fake(), Fake()
    s = scored(dataset, ctx, victims=3, own=own, clean=clean)
    other = Fake()
    scored(dataset, ctx, victims=3, own=other, ids=(0,))
    ((malicious, seeds),) = own.calls
    assert malicious.ids.tolist() == [0, 1] and len(set(seeds)) == 3
    assert clean.calls == [(None, seeds)] and other.calls[0][1] == seeds
    assert s.metrics["cta"].seeds == 3 and len(s.evidence["rounds"]) == 9


def test_nobody_malicious_is_a_federation_of_honest_clients(dataset, ctx):
    own = Fake()
    s = scored(dataset, ctx, own=own, ids=(), budget=0)
    assert own.calls[0][0] is None and s.metrics["asr"].value == 0 and s.flags == ()


def test_measure_then_rescore_agree_to_the_last_digit(dataset, ctx, tmp_path):
    s = scored(dataset, ctx, victims=2, own=Fake(changes={"score": np.linspace(0, 1, 12) ** 2}))
    tables = {}
    for name, t in s.evidence.items():
        t.to_parquet(tmp_path / name)
        tables[name] = pd.read_parquet(tmp_path / name)
    artifact().save(tmp_path / "a.npz")
    again = rescore(load(tmp_path / "a.npz"), tables)
    assert again.metrics == s.metrics and again.grouped == s.grouped and again.flags == s.flags
    assert {m.name for m in s.as_metrics()} >= {"filter_auroc", "asr_max"}


@pytest.mark.parametrize("name", ["outcomes", "rounds", "clients", "notes"])
def test_missing_evidence_is_named(dataset, ctx, name):
    evidence = dict(scored(dataset, ctx).evidence)
    column = evidence[name].columns[-1]
    with pytest.raises(ArtifactError, match=f"of {name}, {column} is missing"):
        rescore(artifact(), {**evidence, name: evidence[name].drop(columns=column)})
    with pytest.raises(ArtifactError, match=f"of {name}, the table is missing"):
        rescore(artifact(), {k: v for k, v in evidence.items() if k != name})


# ---------------------------------------------------------------- what was filtered


def clients_table(weights, malicious, **changes):
    n = len(weights)
    parts = {
        "victim": 0, "round": np.arange(n) // 4, "client": np.arange(n) % 4, "malicious": malicious,
        "weight": weights, "removed": False, "score": np.nan, "rejected": False,
    }  # fmt: skip
    return pd.DataFrame({**parts, **changes})


def test_who_is_removed_by_weight_by_degrees_and_by_a_rule_of_its_own():
    bad = [True, False, False, False] * 2
    hard = of_clients(clients_table([0, 1 / 3, 1 / 3, 1 / 3, 0.25, 0.25, 0.25, 0.25], bad))
    assert hard["filter_tpr"].value == 0.5 and hard["filter_fpr"].value == 0
    assert hard["filter_precision"].value == 1
    soft = of_clients(clients_table([0.12, 0.13, 0.375, 0.375, 0.25, 0.25, 0.12, 0.38], bad))
    assert soft["filter_tpr"].value == 0.5 and soft["filter_fpr"].value == pytest.approx(1 / 6)
    shadow = of_clients(clients_table([0.25] * 8, bad, removed=bad))
    assert shadow["filter_tpr"].value == 1 and shadow["filter_fpr"].value == 0


def test_without_a_filter_there_are_no_filter_metrics():
    plain = of_clients(clients_table([0.25] * 8, [True] * 4 + [False] * 4))
    assert set(plain) == {"malicious_rate", "rejected_rate"} and plain["malicious_rate"].value == 0.5
    asleep = of_clients(clients_table([0.25] * 4, [True, False, False, False], score=[1.0, np.nan, 0.0, 2.0]))
    assert asleep["filter_tpr"].value == 0 and asleep["filter_auroc"].value == 0.5


def test_scores_are_compared_within_a_round():
    t = clients_table([0.25] * 8, [True, False, False, False] * 2, score=[4, 1, 2, 3, 40, 10, 20, 30])
    assert of_clients(t)["filter_auroc"].value == 1


# ---------------------------------------------------------------- flags and refusals


@pytest.mark.parametrize(
    ("own", "changes", "flag"),
    [
        (Fake(wrong=(5, 5, 6)), {}, "clean-accuracy-collapsed"),
        (Fake(hits=(0, 0, 0)), {}, "no-trigger-effect"),
        (Fake(), {"budget": 3}, "under-budget"),
        (Fake(changes={"rejected": [True] + [False] * 11}), {}, "updates-rejected"),
        (Fake(note="nothing-kept"), {}, "nothing-kept"),
    ],
)
def test_flags(dataset, ctx, own, changes, flag):
    assert flag in scored(dataset, ctx, own=own, **changes).flags


def test_base_rate_flag(dataset, ctx):
    class Gullible(Fake):
        def one(self, bad):
            return super().one([0])

    assert "high-base-rate" in scored(dataset, ctx, clean=Gullible()).flags


@pytest.mark.parametrize(
    ("changes", "config", "access", "message"),
    [
        ({"ids": (0, 1, 2)}, {}, ALL, "holds 3 clients; its budget is 2"),
        ({}, {"budget": 1}, ALL, "planned budget 1, the artifact says 2"),
        ({}, {"source": 2}, ALL, "planned source 2, the artifact says -1"),
        ({}, {"target_class": 1}, ALL, "planned target_class 1"),
        ({}, {"trigger": "1xs"}, ALL, "planned trigger 1xs, the artifact says 1xl"),
        ({}, {"presence": "drawn"}, ALL, "planned presence drawn, the artifact says fixed"),
        ({"conduct": {"scale": 9.0}}, {"scale": 5.0}, ALL, "scale 5.0, the artifact's have 9.0"),
        # What the artifact leaves unsaid is an honest client's, and not what was planned.
        ({}, {"bound": 1.0}, ALL, "bound 1.0, the artifact's have None"),
        (
            {"conduct": {"scale": 50.0, "rate": 0.5}},
            {"strategy": "rate", "rate": 0.5},
            ALL,
            "scale 1.0, the artifact's have 50.0",
        ),
        ({}, {"strategy": "rate", "rate": 0.5}, ALL, "rate 0.5, the artifact's have 1.0"),
        ({"conduct": {"report": "clean"}}, {"strategy": "covariance"}, ALL, "report true"),
        ({}, {"strategy": "forged"}, ALL, "report clean"),
        (
            {"trigger": {"name": "1xs", "strength": 255.0, "cycles": 8.0}},
            {"trigger": "1xs", "trigger_strength": 6.0},
            ALL,
            "trigger_strength 6.0, the artifact says 255.0",
        ),
        ({}, {}, (), "gives clients labels; its threat allows"),
        ({}, {}, ("training labels",), "stamps images; its threat allows: training labels"),
        ({"conduct": {"epochs": 4}}, {}, ALL[:2], "act with epochs 4"),
        ({"conduct": {"scale": 2.0}}, {}, ALL[:3], "act with scale 2.0"),
        ({"conduct": {"bound": 1.0}}, {}, ALL[:3], "act with bound 1.0"),
        ({"conduct": {"rate": 0.5}}, {}, ALL[:3], "act with rate 0.5"),
        ({"conduct": {"report": "clean"}}, {}, ALL[:4], "act with report clean"),
    ],
)
def test_the_scorer_takes_nothing_on_the_attacks_word(changes, config, access, message):
    with pytest.raises(BudgetExceededError, match=message):
        enforce_threat(artifact(**changes), config, access)


def test_what_the_threat_allows_passes():
    """Beside the refusals above, which the same calls raise for with one thing changed."""
    enforce_threat(artifact(), {"budget": 2, "source": -1, "presence": "fixed", "epochs": 1}, ALL[:2])
    everything = {"epochs": 4, "scale": 2.0, "bound": 1.0, "rate": 0.5, "report": "clean"}
    enforce_threat(artifact(conduct=everything), {"scale": 2.0, "bound": 1.0}, ALL)
    # The defaults, spelt out, are no conduct of their own.
    enforce_threat(artifact(conduct={"scale": 1.0, "bound": None, "rate": 1.0}), {}, ALL[:2])
    enforce_threat(artifact(ids=(), budget=0), {"budget": 0}, ())
    with pytest.raises(BudgetExceededError, match="rate"):
        conduct = {**everything, "scale": 1.0, "bound": None}
        enforce_threat(artifact(conduct=conduct), {}, (*ALL[:3], ALL[4]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": (1, 1)}, "names one twice"),
        ({"ids": (3, 10)}, "expected clients 0 to 9, got 3 to 10"),
        ({"ids": (-1, 3)}, "expected clients 0 to 9, got -1 to 3"),
        ({"labels": np.full((2, 6), 3)}, "expected labels 0 to 2, got 3 to 3"),
        ({"labels": np.zeros((2, 5), np.int64)}, "the artifact belongs to another federation"),
        ({"stamped": np.zeros((2, 6), np.int64)}, "stamped bool"),
        ({"labels": np.zeros((2, 6))}, "labels int64"),
    ],
)
def test_artifacts_that_do_not_fit_are_refused_before_training(dataset, ctx, changes, message):
    own = Fake()
    with pytest.raises(ArtifactError, match=message):
        scored(dataset, ctx, own=own, clean=own, **changes)
    assert own.calls == []


def test_too_many_clients_are_refused_before_training_and_when_scored_again(dataset, ctx):
    evidence = scored(dataset, ctx).evidence
    own = Fake()
    with pytest.raises(BudgetExceededError, match="holds 3 clients; its budget is 2"):
        scored(dataset, ctx, own=own, clean=own, ids=(0, 1, 2))
    assert own.calls == []
    with pytest.raises(BudgetExceededError):
        rescore(replace(artifact(), budget=1), evidence)


def test_an_unknown_conduct_is_refused():
    with pytest.raises(ArtifactError, match="conduct"):
        enforce_threat(artifact(conduct={"teleport": True}), {}, ALL)
