"""Federations as a user meets them: one table, records that validate, directions, bad input, resuming."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from jsonschema import Draft202012Validator

from defenses.poisoning import shadow, spectre
from redteam.core.plan import Request
from redteam.core.record import json_schema
from redteam.data.nouns import ImageSet
from redteam.threats.poisoning.federation.target import FederatedTarget
from tests.e2e.helpers import finished, metrics, pooled, quietly, records, run
from tests.threats.poisoning.federation.helpers import clients, federation

SIZE = {"clients": 100, "per_round": 20, "images": 20, "rounds": 40, "snapshot_every": 10, "batch_size": 10}
QUICK = {"window": 3, "pool": 5, "change": 0.05, "k": 4}
SMALL = ["--dataset", "digits", "--clients", "40", "--per-round", "10", "--federation-images", "20", "--rounds", "20",
         "--workers", "1", "--controls", "none"]  # fmt: skip
BADNETS = ["attack", "federated-badnets", *SMALL, "--trigger", "4xl"]

PLAN = """
[[run]]
attack = "federated-badnets"
dataset = "digits"
controls = "none"
options = { trigger = "4xl", fraction = 0.1, stamped = 0.5 }
target = { clients = 40, per_round = 10, images = 20, rounds = 20, snapshot_every = 5 }
"""


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A store with one attack behind nothing, multi-krum and shadow, and what the command printed."""
    root = tmp_path_factory.mktemp("federations")
    parts = [PLAN, *(PLAN + f'defenses = ["{d}"]\n' for d in ("multi-krum", "shadow:window=2,pool=2,k=2"))]
    (root / "plan.toml").write_text("".join(parts))
    store = root / "runs"
    out = quietly("sweep", root / "plan.toml", "--store", store, "--workers", "1")
    return store, out, root / "plan.toml"


def test_one_table_has_nothing_multi_krum_and_shadow(swept):
    _, out, _ = swept
    assert out.count("server behind") == 1 and out.count("federated-badnets") >= 3
    for part in ("nothing", "multi-krum", "shadow", "asr_mean", "filter_tpr", "clean federation's base rate"):
        assert part in out, part


def test_records_validate_and_say_what_was_told(swept):
    store, _, _ = swept
    found = {"+".join(d["name"] for d in r["cell"]["defenses"]): r for r in records(store)}
    assert set(found) == {"", "multi-krum", "shadow"}
    for record in found.values():
        assert record["status"] == "ok" and record["cell"]["task"]["target"] == "federation"
        named = metrics(record)
        assert set(named) >= {
            "cta", "pta", "asr", "base_pta", "cta_drop", "asr_mean", "asr_max", "cta_mean", "malicious_rate",
            "rejected_rate", "retrain_cost",
        }  # fmt: skip
        groups = {m["group"] for m in record["metrics"]} - {None}
        assert groups == {f"round={n}" for n in (5, 10, 15, 20)}
        assert named["malicious_rate"]["value"] == 0.1 and named["rejected_rate"]["value"] == 0
        assert named["asr_mean"]["n"] == named["asr"]["n"] == named["asr_max"]["n"]
        assert named["asr_mean"]["value"] <= named["asr_max"]["value"] >= named["asr"]["value"]
        assert "bonferroni over 4 snapshots" in named["asr_max"]["method"]
    assert not found[""]["cell"]["defenses"] and "filter_tpr" not in metrics(found[""])
    assert found["multi-krum"]["cell"]["defenses"][0]["oracle"]
    (told,) = found["shadow"]["cell"]["defenses"]
    assert told["oracle"] == ["number of poisons", "target label"]
    assert told["config"]["poisons"] == 4 and told["config"]["label"] == 4
    assert metrics(found[""])["retrain_cost"]["value"] == 1.0
    assert metrics(found["shadow"])["retrain_cost"]["value"] > 1.0


def test_the_last_snapshot_is_the_final_model(swept):
    store, _, _ = swept
    for record in records(store):
        final, last = metrics(record), {m["name"]: m for m in record["metrics"] if m["group"] == "round=20"}
        for name in ("asr", "cta"):
            assert last[name]["value"] == final[name]["value"]


def test_evidence_is_one_row_for_each_client_of_each_round(swept):
    store, _, _ = swept
    for record in records(store):
        table = pd.read_parquet(store / record["id"] / "clients.parquet")
        assert len(table) == 20 * 10 and (table.groupby("round")["malicious"].sum() == 1).all()
        assert np.allclose(table.groupby("round")["weight"].sum(), 1, atol=1e-6)
        assert not table["rejected"].any()


def test_scoring_again_agrees_to_the_last_digit(swept, capsys):
    store, _, _ = swept
    for record in records(store):
        out, _ = run(capsys, "score", record["id"], "--store", str(store))
        assert "differs" not in out and out.count("agrees") == len(record["metrics"])


def test_the_same_plan_again_runs_nothing(swept, capsys):
    store, _, path = swept
    before = {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()}
    _, err = run(capsys, "sweep", str(path), "--store", str(store), "--workers", "1")
    assert err.count("already in") == 3
    assert before == {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()}


def test_a_defended_cell_uses_the_reference_that_is_there(swept):
    """Three cells, one seed: one reference of honest clients, and three attacked federations."""
    store, _, _ = swept
    assert len(list((store / "stages").glob("federation-*.npz"))) == 4


# ---------------------------------------------------------------- directions


def cells(store, attack, *defences):
    """Records of one attack on three seeds."""
    values = {} if attack == "federated-no-attack" else {"fraction": 0.1, "stamped": 0.5}
    request = Request(
        attack=attack, preset="smoke", dataset="digits", values={"trigger": "4xl", **values}, target=SIZE,
        seeds=range(3), defenses=defences, controls="none",
    )  # fmt: skip
    found = finished(request, store)
    assert len(found) == 3
    return found


def test_malicious_clients_open_a_backdoor_and_multi_krum_and_shadow_close_it(tmp_path):
    """One client in ten stamps and relabels half of what it holds, behind nothing and behind two rules.

    The setting was chosen on seeds 10 to 12 (asr 1.00 undefended, 0.06 at most behind shadow); these are 0 to 2. At a
    fraction of 0.15 and above the shadow's filter fails here (its tpr is 0 at k = 8), so this claims nothing of those.
    """
    control = cells(tmp_path, "federated-no-attack")
    attacked = cells(tmp_path, "federated-badnets")
    krum = cells(tmp_path, "federated-badnets", ("multi-krum", {}))
    shadowed = cells(tmp_path, "federated-badnets", ("shadow", QUICK))
    open_door, quiet = pooled(attacked, "asr"), pooled(control, "asr")
    assert open_door.low > quiet.high and open_door.value > 0.9
    for defended in (krum, shadowed):
        closed = pooled(defended, "asr")
        assert closed.high < open_door.low
        assert pooled(defended, "cta_drop").value < 0.05
    for one in (*krum, *shadowed):
        assert one.metric("filter_tpr").low > one.metric("filter_fpr").high
    for one in control:
        assert "no-trigger-effect" not in one.flags and one.metric("cta_drop").value == 0


# ---------------------------------------------------------------- bad input

SHARE = "expected more than 0 and at most 0.5 of the clients"
BAD = [
    (["--per-round", "41"], "per_round: fewer clients than sampled: expected at most the 40 clients, got 41"),
    (["--fraction", "0"], f"{SHARE}, got 0; for no malicious client"),
    (["--fraction", "0.6"], f"{SHARE}, got 0.6"),
    (["--fraction", "0.01"], "which makes none of the 10 of a round; raise fraction"),
    (["--budget", "21"], "expected 1 to 20 malicious clients of 40, at most half, got 21"),
    (["--model", "cnn"], "found a BatchNorm2d in it"),
    (["--defense", "shadow:label=77"], "label: expected one of 0 to 9 to look at, got 77"),
    (["--defense", "shadow:factor=100"], "poisons: expected at most the 40 clients, got 6 times factor 100"),
    (["--defense", "spectral-signatures"], "'spectral-signatures' is for poisoning of a trainable"),
    (["--federation-drift", "labels"], "expected split=dirichlet with it"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=[" ".join(w) for w, _ in BAD])
def test_bad_input_exits_2_with_a_message_and_leaves_nothing(capsys, tmp_path, words, message):
    _, err = run(capsys, *BADNETS, *words, "--store", str(tmp_path / "s"), code=2)
    assert message in " ".join(err.split())
    assert not list(tmp_path.glob("s/*/record.json"))


@pytest.mark.parametrize("defence", ["shadow:window=1,pool=1,floor=0.0,change=1.0", "spectre", "multi-krum"])
def test_clients_that_lack_the_target_label_are_no_error(capsys, tmp_path, defence):
    """At concentration 0.01 a client holds about one class: most have no image of the target's."""
    out, _ = run(
        capsys, *BADNETS, "--rounds", "8", "--federation-split", "dirichlet", "--federation-concentration", "0.01",
        "--defense", defence, "--store", str(tmp_path), "--json",
    )  # fmt: skip
    (record,) = json.loads(out)["records"]
    Draft202012Validator(json_schema()).validate(record)
    assert record["status"] == "ok" and "updates-rejected" not in record["flags"]
    table = pd.read_parquet(tmp_path / record["id"] / "clients.parquet")
    if defence != "multi-krum":
        assert table["score"].isna().any() and not table.loc[table["score"].isna(), "removed"].all()


@pytest.mark.parametrize("defence", [None, "multi-krum", "shadow:window=1,pool=1,floor=0.0,change=1.0"])
def test_updates_that_are_not_finite_are_rejected_and_recorded(capsys, tmp_path, defence):
    """Clients that multiply their updates by 1e39 send infinities."""
    behind = ["--defense", defence] if defence else []
    out, _ = run(
        capsys, "attack", "model-replacement", *SMALL, "--rounds", "8", "--scale", "1e39", "--fraction", "0.2",
        *behind, "--store", str(tmp_path), "--json",
    )  # fmt: skip
    (record,) = json.loads(out)["records"]
    assert record["status"] == "ok" and "updates-rejected" in record["flags"]
    table = pd.read_parquet(tmp_path / record["id"] / "clients.parquet")
    assert (table["rejected"] == table["malicious"]).all()
    assert (table.loc[table["rejected"], "weight"] == 0).all()
    named = metrics(record)
    assert named["rejected_rate"]["value"] == named["malicious_rate"]["value"] == 0.2
    assert named["cta"]["value"] > 0.5, "the federation goes on without them"
    notes = pd.read_parquet(tmp_path / record["id"] / "notes.parquet")
    assert (notes.loc[notes["name"] == "rejected", "value"] == 2).all()
    out, _ = run(capsys, "score", record["id"], "--store", str(tmp_path))
    assert "differs" not in out


@pytest.mark.parametrize("rule", [shadow, spectre])
def test_a_label_that_never_occurs_leaves_the_model_as_it_was(ctx, rule):
    plain = federation(rounds=6)
    train = ImageSet(plain.train.images, plain.train.labels, (*plain.train.classes, "never"))
    target = FederatedTarget(train, plain.facts, plain.config, plain.device)
    bad = clients(target, [0, 1])
    settings = {"floor": 0.0, "change": 1.0, "window": 1, "pool": 1} if rule is shadow else {}
    (made,) = rule.SPEC.run(target, rule.Config(poisons=2, label=3, **settings), ctx).fit(bad, [0], ctx)
    (alone,) = target.fit(bad, [0], ctx)
    assert made.clients["score"].isna().all() and not made.clients["removed"].any()
    images = target.train.images
    assert np.array_equal(made.snapshots[-1].model.logits(images), alone.snapshots[-1].model.logits(images))
