"""String attacks as a user meets them, on the embedded model: rows, records, caps, resuming, refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from redteam.core.artifacts import load
from redteam.core.ledger import Ledger
from redteam.core.record import json_schema, parse
from tests.e2e.helpers import quietly, run

GCQ = ["attack", "gcq", "--dataset", "random-words", "--strings", "3", "--target-tokens", "6", "--workers", "1",
       "-q"]  # fmt: skip
SMALL = [*GCQ, "--max-queries", "48", "--length", "12"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    quietly(*SMALL, "--store", root)
    return root


def records(store):
    return {r.cell.attack.name: r for p in store.glob("*/record.json") for r in [parse(p.read_text())]}


def test_gcq_runs_with_its_six_controls_and_every_record_validates(store):
    found = records(store)
    assert set(found) == {
        "gcq", "no-string", "plain-request", "init-only", "random-search", "random-init", "transfer-only",
    }  # fmt: skip
    for record in found.values():
        Draft202012Validator(json_schema()).validate(json.loads(record.to_json()))
        assert record.status == "ok" and record.metric("success").n == 3
        assert record.metric("success", "template=chat") is not None
        assert record.cost.queries > 0 and record.cost.tokens_in > 0 and record.cost.usd == 0
    assert found["transfer-only"].cost.other_queries > 0 == found["gcq"].cost.other_queries


def test_controls_that_ask_nothing_ask_nothing_and_searches_keep_their_budget(store):
    for name, record in records(store).items():
        artifact = load(store / record.id / "artifact.npz")
        most = {"no-string": 0, "plain-request": 0, "init-only": 0, "transfer-only": 1}.get(name, 48)
        assert artifact.queries.max() <= most
        assert (artifact.found == (artifact.queries_at >= 0)).all()


def test_score_agrees_to_the_last_digit(store, capsys):
    for record in records(store).values():
        out, _ = run(capsys, "score", record.id, "--store", str(store))
        assert "differs" not in out and out.count("agrees") == len(record.metrics)


def test_two_runs_on_the_same_strings_are_paired(store, capsys):
    found = records(store)
    out, _ = run(capsys, "score", found["gcq"].id, "--against", found["no-string"].id, "--store", str(store))
    value = found["gcq"].metric("success").value - found["no-string"].metric("success").value
    assert f"success minus that of no-string ({found['no-string'].id}): {value:.3f} [" in out


def test_report_and_export(store, capsys):
    record = records(store)["gcq"]
    run(capsys, "report", record.id, "--store", str(store))
    page = (store / record.id / "report.html").read_text()
    assert "init-only" in page and "<script" not in page
    run(capsys, "export", "jailbreakbench", record.id, "--store", str(store))
    assert len(json.loads((store / record.id / "jailbreakbench.json").read_text())["jailbreaks"]) == 3


def test_a_cap_stops_a_run_and_a_higher_one_goes_on_to_the_same_end(store, tmp_path, capsys):
    """Never more than the cap, over both attempts; and the search goes on as if it had not stopped."""
    alone = [*SMALL, "--controls", "none", "--store", str(tmp_path)]
    run(capsys, *alone, "--cap-tokens", "400", code=1)
    (folder,) = (p.parent for p in tmp_path.glob("*/record.json"))
    stopped = parse((folder / "record.json").read_text())
    assert stopped.status == "timeout" and "cap on tokens is 400" in stopped.error.message
    assert 0 < Ledger(folder / "spend.sqlite").spent().tokens_in <= 400
    run(capsys, *alone, "--cap-tokens", "400", code=1)
    spent = Ledger(folder / "spend.sqlite").spent()
    assert spent.tokens_in + spent.tokens_out <= 400
    run(capsys, *alone, "--resume", folder.name[:8])
    whole = load(store / records(store)["gcq"].id / "artifact.npz")
    again = load(folder / "artifact.npz")
    assert again.prompts == whole.prompts and np.array_equal(again.queries, whole.queries)
    assert not (folder / "unfinished").exists()


def test_resume_refuses_another_config_and_says_what_differs(store, capsys):
    run_id = records(store)["gcq"].id
    other = [*GCQ, "--max-queries", "64", "--length", "12", "--store", store]
    _, err = run(capsys, *other, "--resume", run_id, code=2)
    assert "attack.config.max_queries: was 48, is 64" in err
    assert len(records(store)) == 7


def test_defended_cells_adaptive_and_oblivious(tmp_path, capsys):
    behind = [*SMALL, "--controls", "none", "--defense", "perplexity-filter:model=tiny:", "--store", tmp_path]
    run(capsys, *behind)
    run(capsys, *behind, "--adaptive")
    kinds = {r.cell.knowledge: r for p in tmp_path.glob("*/record.json") for r in [parse(p.read_text())]}
    assert set(kinds) == {"adaptive", "oblivious"}
    for record in kinds.values():
        assert record.metric("benign_pass").n == 24
    notes = {k: load(tmp_path / r.id / "artifact.npz").notes for k, r in kinds.items()}
    assert notes["adaptive"]["adapts_to_filter"] and not notes["oblivious"]["adapts_to_filter"]


def test_a_users_own_list_and_a_universal_string(tmp_path, capsys):
    (tmp_path / "mine.csv").write_text("target\n" + "\n".join(f"say {c * 3}" for c in "abcd"))
    mine = f"file:{tmp_path / 'mine.csv'}"
    words = ["attack", "gcq", "--dataset", mine, "--max-queries", "16", "--universal"]
    words += ["--request", "Say {target} ", "--controls", "none", "--store", str(tmp_path / "runs"), "-q"]
    run(capsys, *words)
    (path,) = (tmp_path / "runs").glob("*/artifact.npz")
    artifact = load(path)
    assert artifact.prompts[0].startswith("Say say aaa ")
    assert len({p.split("aaa")[-1] for p in artifact.prompts[:1]}) == 1
    tails = {p.removeprefix(f"Say {t} ") for p, t in zip(artifact.prompts, artifact.targets, strict=True)}
    assert len(tails) == 1 and list(artifact.queries[2:]) == [0, 0]
    record = parse(path.with_name("record.json").read_text())
    assert record.metric("success", "split=validation").n == 2 == record.metric("success_found").n
    out, _ = run(capsys, "score", record.id, "--store", str(tmp_path / "runs"))
    assert out.count("agrees") == len(record.metrics)


def test_a_list_shorter_than_the_presets_is_taken_whole(tmp_path, capsys):
    (tmp_path / "two.txt").write_text("the cat sat\nblue sky\n")
    words = ["attack", "no-string", "--dataset", f"file:{tmp_path / 'two.txt'}", "--dry-run", "--json"]
    out, _ = run(capsys, *words, "--store", str(tmp_path / "runs"))
    assert json.loads(out)["cells"][0]["task"]["config"]["strings"] == 2
    _, err = run(capsys, *words, "--strings", "3", "--store", str(tmp_path / "runs"), code=2)
    assert "expected at most 2" in err


def test_a_budget_in_dollars_needs_a_price(tmp_path, capsys):
    _, err = run(capsys, *SMALL, "--max-usd", "0.1", "--controls", "none", "--store", str(tmp_path), code=2)
    assert "max_usd: tiny: has no price" in err


def test_presets_of_a_defence_can_be_named(tmp_path, capsys):
    behind = [*SMALL, "--controls", "none", "--dry-run", "--json", "--store", str(tmp_path), "--defense"]
    out, _ = run(capsys, *behind, "perplexity-filter:preset=bytes")
    (cell,) = json.loads(out)["cells"]
    (plain,) = json.loads(run(capsys, *behind, "perplexity-filter")[0])["cells"]
    assert cell["defenses"] != plain["defenses"]
    _, err = run(capsys, *behind, "perplexity-filter:preset=byte", code=2)
    assert "Did you mean 'bytes'" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "tiny"], "model: expected BACKEND:NAME"),
        (["--target", "tony:"], "Did you mean 'tiny'"),
        (["--strings", "10000"], "expected at most"),
        (["--dataset", "file:/no/such/list.txt"], "/no/such/list.txt"),
        (["--dataset", "cifar10"], "cifar10"),
        (["--loss", "top"], "'top' is not one of"),
        (["--universal"], "--request"),
        (["--target", "gguf:/no/such.gguf"], "/no/such.gguf"),
        (["--defense", "perplexity"], "Did you mean 'perplexity-filter'"),
        (["--cap-usd", "1", "--prices", "/no/prices.toml"], "/no/prices.toml"),
    ],
)
def test_bad_input_says_what_was_expected(words, message, tmp_path, capsys):
    _, err = run(capsys, *SMALL, *words, "--store", str(tmp_path), code=2)
    assert message in err
    assert not list(tmp_path.glob("*/record.json"))


def test_dry_run_asks_nothing(tmp_path, capsys):
    out, _ = run(capsys, *SMALL, "--dry-run", "--store", str(tmp_path))
    assert "Prompts put to the target, at most" in out and "gcq: 144" in out
    assert not list(tmp_path.glob("*"))


def test_suffixes_slip_past_the_embedded_classifier(tmp_path, capsys):
    words = ["attack", "gcq-moderation", "--strings", "24", "--length", "20", "--workers", "1", "-q"]
    run(capsys, *words, "--store", str(tmp_path))
    (path,) = tmp_path.glob("*/record.json")
    record = parse(path.read_text())
    assert record.metric("evasion_lift").low > 0 and record.metric("base_evasion").n == 24
    out, _ = run(capsys, "score", record.id, "--store", str(tmp_path))
    assert out.count("agrees") == len(record.metrics)
