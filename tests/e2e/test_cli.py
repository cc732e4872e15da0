"""The command line as a user meets it: rows, records, resuming, JSON, exit codes, bad input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.e2e.helpers import quietly, records, run

DIGITS = ["--dataset", "digits", "--model", "cnn", "--victim-epochs", "2", "--workers", "1"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with one attack and its controls, two seeds."""
    root = tmp_path_factory.mktemp("runs")
    quietly("attack", "random-flips", *DIGITS, "--budget", "60", "--seeds", "2", "--store", root, "-q")
    quietly("attack", "no-attack", *DIGITS, "--store", root, "-q")
    return root


def test_records_validate_and_carry_what_they_must(store):
    found = records(store)
    assert len(found) == 3
    for record in found:
        assert {m["name"] for m in record["metrics"]} >= {
            "cta", "pta", "asr", "ra", "trigger_lift", "base_cta", "base_pta", "cta_drop",
        }  # fmt: skip
        assert all(m["n"] > 0 for m in record["metrics"])
        assert record["cell"]["task"]["digest"] and record["environment"]["packages"]["torch"]
        assert record["cost"]["stages"]["victim"] > 0
        folder = store / record["id"]
        files = {"artifact.npz", "cell.json", "record.json", "outcomes.parquet", "flips.parquet"}
        assert {p.name for p in folder.iterdir()} == files


def test_score_agrees_to_the_last_digit(store, capsys):
    for record in records(store):
        out, _ = run(capsys, "score", record["id"][:6], "--store", str(store))
        assert "differs" not in out and out.count("agrees") == len(record["metrics"])


def test_score_notices_a_changed_record(store, capsys, tmp_path):
    run_id = records(store)[0]["id"]
    shutil.copytree(store / run_id, tmp_path / run_id)
    path = tmp_path / run_id / "record.json"
    record = json.loads(path.read_text())
    record["metrics"][0]["value"] -= 1e-9
    path.write_text(json.dumps(record))
    out, _ = run(capsys, "score", str(tmp_path / run_id), code=1)
    assert "differs from the record" in out


def test_tampered_evidence_and_artifact_are_refused(store, capsys, tmp_path):
    for name in ("artifact.npz", "outcomes.parquet"):
        run_id = records(store)[0]["id"]
        shutil.copytree(store / run_id, tmp_path / name / run_id)
        path = tmp_path / name / run_id / name
        path.write_bytes(path.read_bytes()[:-7])
        _, err = run(capsys, "score", str(path.parent), code=1)
        assert "was changed or truncated: expected sha256" in err


def test_a_second_run_runs_nothing(store, capsys):
    before = {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()}
    words = ["attack", "random-flips", *DIGITS, "--budget", "60", "--seeds", "2", "--store", store]
    _, err = run(capsys, *words)
    assert err.count("already in") == 2
    assert before == {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()}


def test_another_budget_reuses_the_clean_reference(store, capsys):
    stages = len(list((store / "stages").glob("victim-*.npz")))
    out, _ = run(capsys, "attack", "random-flips", *DIGITS, "--budget", "30", "--store", str(store), "--json")
    (record,) = json.loads(out)["records"]
    assert len(list((store / "stages").glob("victim-*.npz"))) == stages + 1
    assert record["cell"]["attack"]["config"]["budget"] == 30


def test_a_newer_record_is_refused_by_name(store, capsys, tmp_path):
    record = records(store)[0]
    (tmp_path / "r.json").write_text(json.dumps({**record, "schema_version": "9"}))
    _, err = run(capsys, "leaderboard", "show", str(tmp_path / "r.json"), code=1)
    assert "schema version '9'" in err and "reads version '1'" in err


def test_leaderboard_submit_build_verify_show(store, capsys, tmp_path):
    lines, boards = tmp_path / "r" / "x.jsonl", tmp_path / "boards"
    ids = [r["id"] for r in records(store)]
    run(capsys, "leaderboard", "submit", *ids, "--store", store, "--to", lines)
    assert len(lines.read_text().splitlines()) >= 3
    run(capsys, "leaderboard", "build", str(lines), "--out", str(boards))
    out, _ = run(capsys, "leaderboard", "verify", str(lines), "--boards", str(boards))
    assert "follow from the records" in out
    assert "random-flips" in (boards / "poisoning.md").read_text()
    (boards / "poisoning.md").write_text("edited by hand")
    run(capsys, "leaderboard", "verify", str(lines), "--boards", str(boards), code=1)
    out, _ = run(capsys, "leaderboard", "show", str(lines))
    assert "random-flips" in out and "no-attack" in out


def test_report_writes_one_page(store, capsys, tmp_path):
    run(capsys, "report", records(store)[0]["id"], "--store", store, "--out", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert page.startswith("<!") and "data:image/png" in page and "<svg" in page


def test_smoke_preset_of_flip_with_its_controls(capsys, tmp_path):
    out, err = run(capsys, "attack", "flip", "--preset", "smoke", "--store", str(tmp_path), "--workers", "1")
    for name in ("flip", "no-attack", "random-flips", "inner-product-flips"):
        assert name in out
    assert err.count("[") >= 4 and out.count("record.json") == 4


def test_dry_run_runs_nothing(capsys, tmp_path):
    out, _ = run(capsys, "attack", "flip", "--preset", "smoke", "--dry-run", "--store", str(tmp_path / "s"))
    assert '"passes": 2' in out and "Nothing was run" in out and not (tmp_path / "s").exists()


def test_list_and_show(capsys):
    out, _ = run(capsys, "list")
    assert "flip" in out and "fashion-mini" in out and "preact-resnet32" in out
    out, _ = run(capsys, "show", "flip")
    assert "Label Poisoning is All You Need" in out and "label_lr = 150.0" in out and "Preset paper" in out


def test_help_shows_every_knob_with_its_default(capsys):
    out, _ = run(capsys, "attack", "flip", "--help")
    text = " ".join(out.split())
    for part in ("--label-lr FLOAT", "[default: 150.0]", "--victim-epochs", "--model", "--no-victim-flip"):
        assert part in text


def test_config_file_then_pairs_then_options(capsys, tmp_path):
    config = '[attack]\nbudget = 5\ntrigger = "1xl"\n[victim]\nepochs = 4\nlr = 0.2\n'
    (tmp_path / "c.toml").write_text(config)
    out, _ = run(
        capsys, "attack", "random-flips", "--dataset", "digits", "--config", str(tmp_path / "c.toml"),
        "-o", "budget=6", "-o", "victim.lr=0.3", "--victim-epochs", "7", "--dry-run", "--json",
    )  # fmt: skip
    (cell,) = json.loads(out)["cells"]
    assert (cell["attack"]["config"]["budget"], cell["attack"]["config"]["trigger"]) == (6, "1xl")
    assert (cell["task"]["config"]["epochs"], cell["task"]["config"]["lr"]) == (7, 0.3)


def test_sweep_runs_a_plan(capsys, tmp_path):
    (tmp_path / "p.toml").write_text(
        '[[run]]\nattack = "random-flips"\ndataset = "digits"\nseeds = 2\ncontrols = "none"\n'
        'victim = { model = "cnn", epochs = 1 }\ngrid = { budget = [10, 20] }\n'
    )
    words = ["sweep", tmp_path / "p.toml", "--store", tmp_path / "s", "--json", "--workers", "2"]
    cells = [r["cell"] for r in json.loads(run(capsys, *words)[0])["records"]]
    found = sorted((cell["attack"]["config"]["budget"], cell["seed"]) for cell in cells)
    assert found == [(10, 0), (10, 1), (20, 0), (20, 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[run]]\natack = "flip"', "unknown key 'atack' in [[run]]. Did you mean 'attack'"),
        ("run = []", "expected one or more [[run]] tables"),
        ("run = [1, 2]", "expected [[run]] to be a table, got 1"),
        ('[[run]]\nattack = "flip"\nseeds = 0', "seeds: expected at least 1, got 0"),
        ('[[run]]\nattack = "flip"\nseeds = "three"', "seeds: expected a whole number, got 'three'"),
        ('[[run]]\nattack = "flip"\ndefenses = [1]', "defenses: expected text, got 1"),
        ('[[run]]\nattack = "flip"\nadaptive = "perhaps"', "adaptive: expected true or false"),
        ('[[run]]\nattack = "flip"\ngrid = { budget = 3 }', "grid: expected a list of values"),
        ("[[run]]\nseeds = 1", "lacks its `attack`"),
        ("[[run]", "is not TOML"),
    ],
)
def test_plans_that_do_not_fit(capsys, tmp_path, text, message):
    (tmp_path / "bad.toml").write_text(text)
    _, err = run(capsys, "sweep", str(tmp_path / "bad.toml"), code=2)
    assert message in err


FLIP_DIGITS = ["attack", "flip", "--dataset", "digits"]
BAD = [
    (["atack"], "unknown command 'atack'. Did you mean 'attack'"),
    (["attack", "flop"], "unknown attack 'flop'. Did you mean 'flip'"),
    (["attack", "flip", "--dataset", "cifar-10"], "unknown data set 'cifar-10'. Did you mean 'cifar10'"),
    (["attack", "flip", "--bugdet", "3"], "No such option '--bugdet'. (Did you mean one of: '--budget'"),
    (["attack", "flip", "-o", "bugdet=3"], "unknown option 'bugdet'. Did you mean 'budget'"),
    (["attack", "flip", "-o", "victim.epoch=3"], "victim: unknown option 'epoch'. Did you mean 'epochs'"),
    (["attack", "flip", "--preset", "papper"], "unknown preset of flip 'papper'. Did you mean 'paper'"),
    ([*FLIP_DIGITS, "--budget", "0"], "budget: expected more than 0 rows, got 0"),
    ([*FLIP_DIGITS, "--budget", "-5"], "budget: expected more than 0 rows, got -5"),
    ([*FLIP_DIGITS, "--budget", "1298"], "expected 1 to 1297 rows"),
    ([*FLIP_DIGITS, "--source", "4"], "source and target are both class 4"),
    ([*FLIP_DIGITS, "--model", "resnet8"], "unknown model 'resnet8'"),
    ([*FLIP_DIGITS, "--labels", "none.npy", "--controls", "none"], "no file at none.npy"),
    (["attack", "flip", "--adaptive", "--dataset", "digits"], "--adaptive: expected at least one --defense"),
    (["attack", "flip", "--defense", "shadows"], "unknown defense 'shadows'. Did you mean 'shadow'"),
    (["attack", "flip", "--device", "gpu"], "expected a device such as cpu"),
    (["score", "nothing"], "there is no such run"),
    (["leaderboard", "show", "nothing"], "no records at nothing"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=[" ".join(w) for w, _ in BAD])
def test_bad_input_exits_2_with_a_message_and_leaves_nothing(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    _, err = run(capsys, *words, code=2)
    assert message in err
    assert not list(tmp_path.glob("runs/*/record.json"))


def test_a_labels_file_for_another_length(capsys, tmp_path):
    np.save(tmp_path / "l.npy", np.zeros((10, 10), np.float32))
    _, err = run(
        capsys, "attack", "flip", *DIGITS, "--labels", str(tmp_path / "l.npy"), "--controls", "none",
        "--store", str(tmp_path / "s"), code=2,
    )  # fmt: skip
    assert "expected 1297 rows" in err and "(10, 10)" in err
    assert not (tmp_path / "s").exists()


def test_a_store_that_cannot_be_written(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    _, err = run(capsys, "attack", "random-flips", *DIGITS, "--store", str(tmp_path / "s"), code=1)
    assert "no permission to write" in err and "--store" in err


@pytest.mark.parametrize("limit", [20_000])
def test_a_full_disk_leaves_nothing_half_written(tmp_path, limit):
    """The system refuses to let any file grow past `limit` bytes: the run ends, whole files or none stay."""
    code = (
        "import resource, signal, sys\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from redteam.cli import main\nimport redteam.core.run, redteam.core.plan\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\nmain(sys.argv[1:])"
    )
    words = ["attack", "random-flips", *DIGITS, "--store", str(tmp_path / "s")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 1 and "cannot write" in done.stderr and "Traceback" not in done.stderr
    left = [p for p in (tmp_path / "s").rglob("*") if p.is_file() and p.suffix != ".lock"]
    assert not [p for p in left if "stages" not in p.parts or p.name.endswith(".partial")]


def test_a_label_file_with_other_content_is_another_cell(capsys, tmp_path):
    from redteam.data import load

    labels = load("digits").train.labels.copy()
    words = ["attack", "flip", *DIGITS, "--labels", str(tmp_path / "l.npy"), "--controls", "none", "--budget", "9",
             "--store", str(tmp_path / "s"), "--json"]  # fmt: skip
    ids = []
    for row in (0, 1):
        labels[row] = (labels[row] + 1) % 10
        np.save(tmp_path / "l.npy", labels)
        (record,) = json.loads(run(capsys, *words)[0])["records"]
        ids.append(record["id"])
        (rate,) = [m["value"] for m in record["metrics"] if m["name"] == "poison_rate"]
        assert rate == (row + 1) / len(labels)
    assert ids[0] != ids[1]


def test_sigterm_ends_the_workers_too(tmp_path):
    words = ["attack", "random-flips", "--dataset", "digits", "--model", "cnn", "--victim-epochs", "2000",
             "--seeds", "2", "--workers", "2", "--store", str(tmp_path)]  # fmt: skip
    command = [sys.executable, "-c", "from redteam.cli import main; main()", *words]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("stages/victim-*.lock"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 130
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.killpg(process.pid, 0)
            time.sleep(0.1)


def test_time_limit_gives_a_timeout_record(capsys, tmp_path):
    words = ["attack", "random-flips", *DIGITS, "--store", tmp_path, "--max-seconds", "0.001", "--json"]
    out, _ = run(capsys, *words, code=1)
    (record,) = json.loads(out)["records"]
    assert record["status"] == "timeout" and "the limit was 0.001 s" in record["error"]["message"]


def test_ctrl_c_then_the_same_command_goes_on(tmp_path):
    """Interrupted after the first record; the second run finishes without running that cell again."""
    words = ["attack", "random-flips", "--dataset", "digits", "--model", "cnn", "--victim-epochs", "15",
             "--seeds", "4", "--workers", "2", "--store", str(tmp_path)]  # fmt: skip
    command = [sys.executable, "-c", "from redteam.cli import main; main()", *words]
    # A shell starts its background jobs with SIGINT ignored, and children inherit that.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("*/record.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and b"finished cells and stages are kept" in err
    assert b"Traceback" not in err
    done = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/record.json")}
    assert 1 <= len(done) < 4 and not list(tmp_path.rglob("*.partial"))
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0 and len(list(tmp_path.glob("*/record.json"))) == 4
    assert all(p.stat().st_mtime_ns == t for p, t in done.items())
