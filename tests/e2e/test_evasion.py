"""Evasion as a user meets it: rows, records that validate, one's own model, directions, bad input."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from redteam.core.errors import ConfigError
from redteam.core.plan import read_plan
from redteam.core.stats import paired_difference
from tests.e2e.helpers import quietly, records, run

SIZE = {"eps": 0.15, "steps": 150, "check_every": 50, "val_rows": 60, "val_steps": 3, "examples": 150}
SIZES = [w for k, v in SIZE.items() for w in ("-o", f"target.{k}={v}")]
QUICK = ["--dataset", "digits", "--workers", "1", "--quiet", *SIZES]

MODEL = """
import torch
from torch import nn


class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(10, 64, generator=generator))

    def forward(self, x):
        return ((x - 0.5) / 0.5).flatten(1) @ self.weight.T


def build():
    return Mine()


def short():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))
"""


def outcomes(store, record):
    place = next(e for e in record["evidence"] if "outcomes" in e["path"])
    return pd.read_parquet(store / record["id"] / place["path"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """PGD with its controls on ERM and on adversarial training, on scikit-learn's digits."""
    store = tmp_path_factory.mktemp("store")
    for extra in ([], ["--defense", "at-source"]):
        quietly("attack", "pgd", *QUICK, "--curve", "0.05,1.0", "--store", store, *extra)
    return store


def test_rows_records_and_controls(trained):
    found = records(trained)
    names = sorted((r["cell"]["attack"]["name"], len(r["cell"]["defenses"]), r["role"]) for r in found)
    assert names == [(n, d, role) for n, role in (
        ("no-perturbation", "control"), ("pgd", "attack"), ("random-noise", "control")) for d in (0, 1)]  # fmt: skip
    for record in found:
        assert (record["status"], record["cell"]["knowledge"]) == ("ok", "adaptive")
        values = {m["name"]: m["value"] for m in record["metrics"] if m["group"] is None}
        assert values["robust_accuracy"] <= values["accuracy"]
        if record["cell"]["attack"]["name"] == "no-perturbation":
            assert values["robust_accuracy"] == values["accuracy"]
        groups = {m["group"] for m in record["metrics"] if m["name"] == "robust_accuracy"}
        assert {"eps=0.05", "eps=0.15", "eps=1"} <= groups


def test_adversarial_training_is_more_robust_and_pgd_stronger_than_noise(trained):
    table = {}
    for record in records(trained):
        rows = outcomes(trained, record)
        rows = rows[np.isclose(rows["eps"], 0.15)].sort_values("index")
        right = (rows["clean"] == rows["label"]) & (rows["adversarial"] == rows["label"])
        table[record["cell"]["attack"]["name"], len(record["cell"]["defenses"])] = right.to_numpy()[None]
    gain = paired_difference(table["pgd", 1], table["pgd", 0])
    assert gain.low is not None and gain.low > 0, gain
    weaker = paired_difference(table["random-noise", 0], table["pgd", 0])
    assert weaker.low is not None and weaker.low > 0, weaker


def test_scoring_again_agrees_and_compare_pairs_the_two(trained, capsys):
    for record in records(trained)[:2]:
        run(capsys, "score", record["id"], "--store", trained)
    out, _ = run(capsys, "compare", "--store", trained, "--base", "at-source", "--attack", "pgd", "--json")
    assert "at-source" in out and "robust_accuracy" in out


def test_a_model_of_ones_own_on_ones_own_data(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(MODEL)
    words = [
        "attack", "apgd", "--model", f"{tmp_path}/mine.py:build", "--dataset", "digits", "--examples", "40",
        "--steps", "5", "--controls", "none", "--store", tmp_path / "store", "--json", "--workers", "1",
    ]  # fmt: skip
    (record,) = json.loads(run(capsys, *words)[0])["records"]
    assert record["status"] == "ok" and len(record["cell"]["task"]["config"]["model_sha256"]) == 64
    assert "adapted" not in record["cost"]["stages"], "a model of one's own is not trained"
    (tmp_path / "mine.py").write_text(MODEL.replace("manual_seed(0)", "manual_seed(1)"))
    (other,) = json.loads(run(capsys, *words)[0])["records"]
    assert other["id"] != record["id"], "another model is another cell"


@pytest.mark.parametrize(("words", "message"), [
    (["pgd", "--eps", "8/0"], "eps: expected a radius of at least 0 such as 0.1 or 8/255, got '8/0'"),
    (["pgd", "--curve", "0.1,x"], "expected a radius"),
    (["autoattack", "--steps", "10"], "AutoAttack standard means"),
    (["pgd", "--model", "no/such.pt"], "no/such.pt"),
    (["pgd", "--model", "digit-cnn-smal"], "digit-cnn-small"),
    (["pgd", "--defense", "dart"], "dart adapts to a target domain, and 'digits' has none"),
    (["pgd", "--defense", "at-source", "--defense", "trades-source"], "they do not compose"),
    (["pgd", "--select", "oracle"], "'oracle' needs a target domain"),
    (["pgd", "--defense", "shadow"], "the defence 'shadow' is for poisoning"),
    (["pgd", "--dataset", "mnist-to-ups"], "usps"),
    (["pgd", "--dataset", "usps-to-usps"], "two different domains"),
])  # fmt: skip
def test_bad_input_is_explained_and_leaves_nothing_behind(words, message, tmp_path, capsys):
    data = [] if "--dataset" in words else ["--dataset", "digits"]
    _, err = run(capsys, "attack", *words, *data, "--store", tmp_path / "store", "--workers", "1", code=2)
    assert message in err
    assert not list(tmp_path.glob("store/*/record.json"))


def test_a_model_with_the_wrong_number_of_classes_is_refused(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(MODEL)
    _, err = run(
        capsys, "attack", "pgd", "--model", f"{tmp_path}/mine.py:short", "--dataset", "digits", "--store",
        tmp_path / "store", "--workers", "1", code=2,
    )  # fmt: skip
    assert "7" in err and "10" in err and not list(tmp_path.glob("store/*/record.json"))


def test_a_grid_runs_over_data_sets_defences_and_target_knobs(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(
        '[[run]]\nattack = "pgd"\noptions = { steps = 5 }\ntarget = { victims = 2 }\n[run.grid]\n'
        'dataset = ["a", "b"]\ndefenses = [[], ["dart:weight=0.3"]]\n"target.lr" = [0.1, 0.2]\neps = [0.1]\n'
    )
    found = read_plan(path)
    assert len(found) == 8 and {r.dataset for r in found} == {"a", "b"}
    assert [r.defenses for r in found[:3:2]] == [(), (("dart", {"weight": "0.3"}),)]
    assert all(r.target["victims"] == 2 and r.target["lr"] in (0.1, 0.2) for r in found)
    assert all(dict(r.values) == {"steps": 5, "eps": 0.1} for r in found)
    path.write_text('[[run]]\nattack = "pgd"\n[run.grid]\ndefenses = [3]\n')
    with pytest.raises(ConfigError, match="defenses"):
        read_plan(path)


def evaluated(capsys, store, *words):
    """The lines of `compare --table` after `evaluate` of a defence, and the names of attacks and controls."""
    from redteam.core import registry

    once = ["--preset", "smoke", "--seeds", "1", "--workers", "1", "--quiet", "--store", store]
    run(capsys, "evaluate", *words, *once)
    out, _ = run(capsys, "compare", "--table", "--store", store, "--json")
    known = {n for n in registry.names("attack") if registry.get("attack", n).threat.kind == "evasion"}
    controls = {n for n in known if registry.get("attack", n).role == "control"}
    return json.loads(out)["lines"], known - controls, controls


def called(attack):
    # The smoke preset of AutoAttack is no AutoAttack.
    return "autoattack (custom)" if attack == "autoattack" else attack


def test_evaluate_runs_every_attack_and_control_behind_nothing_and_the_defence(tmp_path, capsys):
    store = tmp_path / "store"
    lines, attacks, controls = evaluated(
        capsys, store, "at-source", "--dataset", "digits", "-o", "target.steps=4", "-o", "target.select=last"
    )
    found = records(store)
    ran = {(r["cell"]["attack"]["name"], tuple(d["name"] for d in r["cell"]["defenses"])) for r in found}
    assert ran == {(a, d) for a in attacks | controls for d in ((), ("at-source",))}
    assert {r["status"] for r in found} == {"ok"}
    assert {r["cell"]["attack"]["name"] for r in found if r["role"] == "control"} == controls
    assert [line["defence"] for line in sorted(lines, key=lambda x: x["defence"])] == ["at-source", "none"]
    for line in lines:
        assert set(line["attacks"]) == {called(a) for a in attacks}
        assert line["worst"]["value"] <= min(e["value"] for e in line["attacks"].values())
        assert line["n"] > 0 and line["victims"] == 1
    out, _ = run(capsys, "compare", "--store", store, "--base", "at-source", "--worst", "--json")
    (row,) = json.loads(out)["rows"]
    assert row["paired"] == "images"
    assert row["attack"] == "worst of " + ", ".join(sorted(called(a) for a in attacks))


@pytest.mark.slow
def test_evaluate_dart_with_its_variants_and_baselines(tmp_path, capsys):
    """108 cells: minutes of training."""
    lines, attacks, _ = evaluated(capsys, tmp_path / "store", "dart")
    found = records(tmp_path / "store")
    assert {r["status"] for r in found} == {"ok"}
    names = {line["defence"].split(" (")[0] for line in lines}
    assert {"none", "dart", "dann", "at-source"} <= names
    for line in lines:
        assert set(line["attacks"]) == {called(a) for a in attacks} and line["worst"] is not None
