"""Filters of training data as a user meets them: one table, records, directions, bad input."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from jsonschema import Draft202012Validator

from redteam.core import registry
from redteam.core.device import Device
from redteam.core.plan import Request
from redteam.core.record import json_schema
from redteam.data.nouns import ImageSet
from redteam.data.toys import stripes_dataset
from redteam.learn.nouns import TrainingSet
from redteam.threats.poisoning.target import ImageTrainable
from tests.conftest import small_config
from tests.e2e.helpers import finished, metrics, pooled, quietly, records, run

TRIMMED = [
    "--dataset", "digits", "--preset", "smoke", "--workers", "1", "-o", "target.model=mlp", "-o", "target.epochs=1",
    "-o", "passes=1", "-o", "experts=1", "-o", "expert_epochs=1", "-o", "rehearsals=1",
]  # fmt: skip
ONE = ["--dataset", "digits", "--preset", "smoke", "--model", "mlp", "--victim-epochs", "3", "--workers", "1",
       "--controls", "none"]  # fmt: skip
ATTACKS = {
    "badnets", "badnets-adaptive", "flip", "flip-adaptive", "inner-product-flips", "no-attack", "random-flips",
}  # fmt: skip
ADAPTIVE = {"badnets-adaptive", "flip-adaptive"}


def defence(record):
    """The cell's only defence, or None."""
    return next(iter(record["cell"]["defenses"]), None)


# ---------------------------------------------------------------- evaluate


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """SPECTRE told half the number, beside nothing and its baselines, against every attack."""
    store = tmp_path_factory.mktemp("evaluate")
    return store, quietly("evaluate", "spectre:factor=0.5", *TRIMMED, "--store", str(store), "-q")


def test_evaluate_prints_one_table(evaluated):
    _, out = evaluated
    assert out.count("victim behind") == 1 and "clean model's base rate of pta" in out
    baselines = registry.get("defense", "spectre").baselines
    assert set(baselines) == {"random-removal", "spectral-signatures"}
    for part in ("nothing", "(factor=0.5)", "filter_tpr", *baselines, *sorted(ATTACKS)):
        assert part in out, part


def test_every_attack_meets_every_defence_and_all_records_validate(evaluated):
    store, _ = evaluated
    found = records(store)
    met = {(r["cell"]["attack"]["name"], (defence(r) or {"name": None})["name"]) for r in found}
    behind = {None, "random-removal", "spectral-signatures", "spectre"}
    assert met == {(a, d) for a in ATTACKS for d in behind}
    for record in found:
        Draft202012Validator(json_schema()).validate(record)
        assert record["status"] == "ok"
        named = metrics(record)
        attacked = record["cell"]["attack"]["name"] != "no-attack"
        assert ("filter_tpr" in named) == (attacked and defence(record) is not None)
        assert ("retrain_cost" in named) == ("filter_fpr" in named) == (defence(record) is not None)
        if defence(record) is not None and defence(record)["name"] == "random-removal":
            assert "filter_auroc" not in named, "it scores nothing"


def test_what_a_defence_was_told_stands_in_the_record(evaluated):
    store, _ = evaluated
    seen = set()
    for record in records(store):
        told, attack = defence(record), record["cell"]["attack"]["config"]
        if told is None:
            continue
        seen.add(told["name"])
        wrong = ", times 0.5" if told["name"] == "spectre" else ""
        assert told["oracle"] == [f"number of poisons{wrong}", "target label"]
        assert told["config"]["label"] == attack["target_class"]
        # A control that changes nothing tells the usual two in a hundred of 1,297 rows.
        assert told["config"]["poisons"] == (attack["budget"] or 26)
    assert len(seen) == 3


def test_adaptive_cells_are_marked_and_only_they(evaluated):
    """Rehearsing adapts to whatever stands there; covering stamps adapt to filters of representations alone."""
    store, out = evaluated
    assert "adaptive" in out and "oblivious" in out
    seen = set()
    for record in records(store):
        if defence(record) is not None:
            attack = record["cell"]["attack"]
            covering = attack["config"].get("strategy") == "cover"
            in_vain = covering and defence(record)["name"] == "random-removal"
            adapts = attack["name"] in ADAPTIVE and not in_vain
            assert record["cell"]["knowledge"] == ("adaptive" if adapts else "oblivious")
            seen.add((covering, adapts))
    assert seen == {(False, False), (False, True), (True, True), (True, False)}


def test_the_number_removed_is_what_was_told(evaluated):
    store, _ = evaluated
    for record in records(store):
        told = defence(record)
        if told is None:
            continue
        table = pd.read_parquet(store / record["id"] / "filter.parquet")
        wanted = round(1.5 * told["config"]["factor"] * told["config"]["poisons"])
        mine = table["given"] == told["config"]["label"]
        assert table["removed"].sum() == min(wanted, mine.sum()) and not table.loc[~mine, "removed"].any()


def test_scoring_a_filtered_run_again_agrees_to_the_last_digit(evaluated, capsys):
    store, _ = evaluated
    for name in ("spectre", "random-removal"):
        record = next(
            r for r in records(store)
            if defence(r) and defence(r)["name"] == name and r["cell"]["attack"]["name"] == "badnets"
        )  # fmt: skip
        out, _ = run(capsys, "score", record["id"], "--store", str(store))
        assert "differs" not in out and out.count("agrees") == len(record["metrics"])
        assert out.count("filter_fpr") == 11, "one for each label, and one for all"


@pytest.mark.slow
def test_evaluate_runs_all_variants_and_says_which(tmp_path):
    """All of SPECTRE's variants: the number right, half and double, and the label unknown."""
    out = quietly("evaluate", "spectre", *TRIMMED, "--store", str(tmp_path), "-q")
    variants = registry.get("defense", "spectre").variants
    assert out.count("victim behind") == 1 and len(variants) == 4
    for part in ("(factor=0.5)", "(factor=2.0)", "labels=all"):
        assert part in out, part
    told = [defence(r) for r in records(tmp_path)]
    assert {(d["config"]["factor"], d["config"]["labels"]) for d in told if d and d["name"] == "spectre"} == {
        (1.0, "known"), (0.5, "known"), (2.0, "known"), (1.0, "all"),
    }  # fmt: skip
    assert all("target label" not in d["oracle"] for d in told if d and d["config"]["labels"] == "all")


# ---------------------------------------------------------------- directions


def behind(store, name):
    """Records behind one filter on three seeds."""
    request = Request(
        attack="badnets", preset="smoke", dataset="digits", seeds=range(3), controls="none",
        values={"trigger": "4xl", "source": "all", "budget": 0.04}, target={"model": "mlp", "epochs": 6},
        defenses=((name, {}),),
    )  # fmt: skip
    found = finished(request, store)
    assert len(found) == 3
    return found


def test_filters_find_more_than_random_removal_and_close_the_backdoor(tmp_path):
    """BadNets from all classes, 52 rows, a corner patch. The setting was chosen on seeds 10 to 12; these are 0 to 2."""
    removed = behind(tmp_path, "random-removal")
    chance, open_door = pooled(removed, "filter_tpr"), pooled(removed, "pta")
    for name in ("spectral-signatures", "spectre"):
        filtered = behind(tmp_path, name)
        found, closed = pooled(filtered, "filter_tpr"), pooled(filtered, "pta")
        assert found.low > chance.high, (name, found, chance)
        assert closed.high < open_door.low, (name, closed, open_door)


# ---------------------------------------------------------------- bad input

MOST = "expected at most the 1297 training rows"
BAD = [
    ("spectral-signatures:label=77", "label: expected one of 0 to 9 to look at, got 77"),
    ("spectral-signatures:factor=100", f"poisons: {MOST}, got 26 times factor 100"),
    ("spectral-signatures:factor=0", "factor: expected more than 0, got 0"),
    ("spectral-signatures:labels=some", "labels"),
    ("spectre:poisons=-1", "poisons"),
    ("multi-krum", "'multi-krum' is for poisoning of a federation"),
    ("moderation", "is for"),
    ("spectral-signature", "Did you mean 'spectral-signatures'"),
]


@pytest.mark.parametrize(("defense", "message"), BAD, ids=[d for d, _ in BAD])
def test_bad_input_exits_2_with_a_message_and_leaves_nothing(capsys, tmp_path, defense, message):
    words = ["attack", "badnets", *ONE, "--defense", defense, "--store", tmp_path / "s"]
    _, err = run(capsys, *words, code=2)
    assert message in " ".join(err.split())
    assert not list(tmp_path.glob("s/*/record.json"))


def test_a_defence_of_another_target_cannot_be_evaluated_there(capsys, tmp_path):
    words = ["evaluate", "spectral-signatures", "--target-kind", "federation", "--store", tmp_path]
    _, err = run(capsys, *words, code=2)
    message = "no registered attack fits the defence 'spectral-signatures' on a federation"
    assert message in " ".join(err.split())


@pytest.mark.parametrize(
    "settings", ["random-removal:labels=all,poisons=1297", "spectral-signatures:labels=all,poisons=200"]
)
def test_all_samples_flagged_is_a_record_that_says_why(capsys, tmp_path, settings):
    words = ["attack", "badnets", *ONE, "--defense", settings, "--store", tmp_path, "--json"]
    out, _ = run(capsys, *words, code=1)
    (record,) = json.loads(out)["records"]
    Draft202012Validator(json_schema()).validate(record)
    assert record["status"] == "error" and record["metrics"] == []
    assert "of 1297 training rows 0 are left, and one batch needs 64" in record["error"]["message"]
    assert not list((tmp_path / record["id"]).glob("outcomes*"))


def test_a_class_rarer_than_folds_is_said(capsys, tmp_path):
    pytest.importorskip("cleanlab")
    words = ["attack", "badnets", *ONE, "--defense", "confident-learning:folds=200", "--store", tmp_path]
    run(capsys, *words, code=1)
    (path,) = tmp_path.glob("*/record.json")
    record = json.loads(path.read_text())
    message = "folds: expected at most the rows of each label; label 0 has 128 for 200"
    assert record["status"] == "error" and message in record["error"]["message"]


@pytest.mark.parametrize("name", ["spectral-signatures", "spectre", "shadow", "random-removal"])
def test_a_label_that_never_occurs_removes_nothing(ctx, name):
    data = stripes_dataset()
    train = ImageSet(data.train.images, data.train.labels, (*data.train.classes, "never"))
    target = ImageTrainable(train, data.facts, small_config(epochs=1), Device("cpu"))
    spec = registry.get("defense", name)
    told = spec.told(spec.config(), {"budget": 5, "target_class": 3}, target)
    rows = TrainingSet(train.images, train.labels)
    (made,) = spec.run(target, told, ctx).fit(rows, [0], ctx)
    (alone,) = target.fit(rows, [0], ctx)
    assert not made.verdicts.removed.any() and np.isnan(made.verdicts.scores).all()
    assert np.array_equal(made.logits(train.images), alone.logits(train.images))
