"""A package that the suite has never heard of: installed, listed, attacked with, defended with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist",
         str(Path(__file__).parents[1] / "test_contract.py"), "-k", "outsider"],
        env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_attack_behind_its_defence_oblivious_and_adaptive(site, tmp_path):
    words = [
        "attack",
        "outsider-swap",
        *FAST,
        "--store",
        str(tmp_path),
        "--defense",
        "outsider-drop:keep=0.8",
    ]
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
