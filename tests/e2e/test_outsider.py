"""A package that the suite has never heard of: installed, listed, attacked with, defended with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from scipy.stats import binomtest

SOURCE = Path(__file__).parents[1] / "outsider"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the package installed into it."""
    root = tmp_path_factory.mktemp("outsider")
    shutil.copytree(SOURCE, root / "source")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index",
         "--target", str(root / "site"), str(root / "source")],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return root / "site"


def redteam(site, *words, ok=(0,)):
    env = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", "from redteam.cli import main; main()", *words],
        env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode in ok, done.stderr
    return done


FAST = ["--dataset", "digits", "--model", "cnn", "--victim-epochs", "2", "--workers", "1", "--json"]


def test_it_is_listed_and_shown(site):
    listed = redteam(site, "list").stdout
    assert "outsider-swap" in listed and "outsider-drop" in listed
    assert "the first rows of the source class" in redteam(site, "show", "outsider-swap").stdout


def test_it_meets_the_contract(site):
    env = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--pyargs",
         "redteam.testing.contract", "-k", "outsider or vault"],
        env=env, capture_output=True, text=True, cwd=site,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    # Two attacks and two controls run, two defences, one threat.
    assert int(done.stdout.rpartition(" passed")[0].split()[-1]) >= 20


def test_attack_behind_its_defence_oblivious_and_adaptive(site, tmp_path):
    words = ["attack", "outsider-swap", *FAST, "--defense", "outsider-drop:keep=0.8"]
    words += ["--store", str(tmp_path)]
    (oblivious,) = json.loads(redteam(site, *words).stdout)["records"]
    (adaptive,) = json.loads(redteam(site, *words, "--adaptive").stdout)["records"]
    assert (oblivious["cell"]["knowledge"], adaptive["cell"]["knowledge"]) == ("oblivious", "adaptive")
    for record in (oblivious, adaptive):
        (defense,) = record["cell"]["defenses"]
        assert (defense["name"], defense["config"], defense["oracle"]) == (
            "outsider-drop", {"keep": 0.8}, ["nothing"],
        )  # fmt: skip
        assert record["status"] == "ok" and record["role"] == "attack"


def test_evaluate_runs_every_attack_with_and_without(site, tmp_path):
    done = redteam(site, "evaluate", "outsider-drop", "--dataset", "digits", "--dry-run", "--json",
                   "--store", str(tmp_path))  # fmt: skip
    cells = json.loads(done.stdout)["cells"]
    names = {c["attack"]["name"] for c in cells}
    assert {"flip", "badnets", "no-attack", "outsider-swap"} <= names
    # Each attack in all its variants, and each of these with and without.
    runs = {(c["attack"]["name"], json.dumps(c["attack"]["config"], sort_keys=True)) for c in cells}
    assert len(cells) == 2 * len(runs) and sum(bool(c["defenses"]) for c in cells) == len(runs)


def test_a_failing_attack_gives_a_record_that_says_why(site, tmp_path):
    done = redteam(site, "attack", "outsider-swap", *FAST, "--store", str(tmp_path), "--fail", ok=(1,))
    (record,) = json.loads(done.stdout)["records"]
    assert (record["status"], record["error"]) == (
        "error",
        {"type": "RuntimeError", "message": "told to fail"},
    )
    assert "Traceback" not in done.stderr


def test_the_scorer_enforces_the_budget(site, tmp_path):
    done = redteam(site, "attack", "outsider-swap", *FAST, "--store", str(tmp_path), "--over", "3", ok=(1,))
    (record,) = json.loads(done.stdout)["records"]
    assert record["status"] == "unscored" and record["metrics"] == []
    assert "changes 8 training rows; its budget is 5" in record["error"]["message"]


def test_a_defence_of_another_kind_is_refused(site):
    done = redteam(
        site, "attack", "outsider-swap", "--dataset", "digits", "--defense", "outsider-dorp", ok=(2,)
    )
    assert "Did you mean 'outsider-drop'" in done.stderr


# ---------------------------------------------------------------- a threat of its own


@pytest.fixture(scope="module")
def vault(site, tmp_path_factory):
    """A store of runs on the toy threat: an attack and its control, three seeds, with and without a defence."""
    store = tmp_path_factory.mktemp("vault")
    plan = store / "plan.toml"
    plan.write_text("""
[[run]]
attack = "outsider-guess"
seeds = 3

[[run]]
attack = "outsider-guess"
seeds = 3
defenses = ["outsider-lockout:after=2"]
adaptive = true
""")
    redteam(site, "sweep", str(plan), "--workers", "1", "--quiet", "--store", str(store / "runs"))
    return store / "runs"


def records_of(store):
    return [json.loads(path.read_text()) for path in sorted(store.glob("*/record.json"))]


def test_a_threat_is_listed_with_its_data_and_command_and_shown(site):
    listed = redteam(site, "list").stdout
    for text in ("vault       Vault: a secret number", "vault-mini", "outsider-guess", "outsider-lockout"):
        assert text in listed
    assert "compares its final guesses with the secrets" in redteam(site, "show", "vault").stdout
    assert "Threat: vault. Target: vault." in redteam(site, "show", "outsider-lockout").stdout
    assert "Print the secrets of the embedded vault." in redteam(site, "vault", "--help").stdout
    refused = redteam(site, "attack", "random-flips", "--dataset", "vault-mini", ok=(2,)).stderr
    assert "'vault-mini' is a set of secrets; expected a set of images" in refused


def test_a_threat_runs_with_its_control_and_defence_and_the_closed_form_holds(vault):
    found = records_of(vault)
    assert len(found) == 12 and all(r["status"] == "ok" for r in found)
    for role, defended, answered in (("attack", False, 5), ("attack", True, 2), ("control", False, 0)):
        cells = [r for r in found if (r["role"], bool(r["cell"]["defenses"])) == (role, defended)]
        opened = sum(round(m["value"] * m["n"]) for r in cells for m in r["metrics"] if m["name"] == "opened")
        # Without repeats t answers find one of ten with t/10; a last guess at random finds it with 1/10 more.
        assert len(cells) == 3 and binomtest(opened, 180, (answered + 1) / 10).pvalue > 1e-4


def test_a_threat_enforces_its_budget(site, tmp_path):
    done = redteam(site, "attack", "outsider-guess", "--beyond", "2", "--controls", "none", "--json",
                   "--store", str(tmp_path), ok=(1,))  # fmt: skip
    (record,) = json.loads(done.stdout)["records"]
    assert (
        record["status"] == "unscored"
        and "asked 7 times about a secret; its budget is 5" in record["error"]["message"]
    )


def test_evaluate_dry_run_score_report_and_compare(site, vault):
    cells = json.loads(redteam(site, "evaluate", "outsider-lockout", "--dry-run", "--json").stdout)["cells"]
    assert {c["attack"]["name"] for c in cells} == {"outsider-guess", "outsider-blind"} and len(cells) == 4
    attacks = [r["id"] for r in records_of(vault) if r["role"] == "attack"]
    scored = redteam(site, "score", attacks[0], "--against", attacks[1], "--store", str(vault)).stdout
    assert scored.count("agrees") == 3 and "opened minus that of outsider-guess" in scored
    page = Path(redteam(site, "report", attacks[0], "--store", str(vault)).stdout.strip()).read_text()
    assert "<h2>The secrets</h2>" in page and "share of the secrets that were guessed" in page
    words = ["compare", "--metric", "opened", "--base", "none", "--attack", "outsider-guess", "--json"]
    (row,) = json.loads(redteam(site, *words, "--store", str(vault)).stdout)["rows"]
    assert row["paired"] == "images" and row["cells"] == 3
    opened = {d: [m["value"] for r in records_of(vault) if r["role"] == "attack" and bool(r["cell"]["defenses"]) == d
                  for m in r["metrics"] if m["name"] == "opened"] for d in (False, True)}  # fmt: skip
    assert row["difference"]["value"] == pytest.approx((sum(opened[False]) - sum(opened[True])) / 3)


def test_a_threat_has_its_board(site, vault, tmp_path):
    lines = "".join(json.dumps(r) + "\n" for r in records_of(vault))
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "vault.jsonl").write_text(lines)
    paths = [str(tmp_path / "records"), "--out", str(tmp_path / "boards")]
    redteam(site, "leaderboard", "build", *paths)
    board = (tmp_path / "boards" / "vault.md").read_text()
    assert (
        "# Leaderboard: vault" in board
        and "redteam attack outsider-guess --dataset vault-mini --vault-model steel" in board
    )
    redteam(site, "leaderboard", "verify", paths[0], "--boards", paths[2])
    assert "outsider-blind" in redteam(site, "leaderboard", "show", paths[0]).stdout
