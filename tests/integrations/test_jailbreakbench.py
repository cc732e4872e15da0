"""Export to JailbreakBench: the fields of its artifacts, this suite's numbers, and a round trip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from redteam.cli.export import export
from redteam.core.errors import ArtifactError, DataError, RecordError
from redteam.core.hashing import digest_file
from redteam.core.record import ErrorInfo, Record
from redteam.integrations.jailbreakbench import JailbreakArtifact, of_run, parse, to_json
from redteam.threats.poisoning.artifact import Poison
from tests.threats.strings.helpers import SHIELD, TEXTS, cell, model, strings, write_run

WON = [[True] * 3, [True, False, True], [True, False, False], [False, True, True], [True] * 3, [False] * 3]

# Written out by hand from the pydantic models of the benchmark's wheel 1.0.0, its list of models left out.
COUNT = {"type": ["integer", "null"], "minimum": 0}
TEXT = {"type": ["string", "null"]}
ITEM: dict[str, Any] = {
    "index": {"type": "integer"}, "goal": {"type": "string"}, "behavior": {"type": "string"},
    "category": {"type": "string"}, "prompt": TEXT, "response": TEXT, "number_of_queries": COUNT,
    "queries_to_jailbreak": COUNT, "prompt_tokens": COUNT, "response_tokens": COUNT,
    "jailbroken": {"type": "boolean"},
}  # fmt: skip
PARAMETERS: dict[str, Any] = {
    "method": {"type": "string"}, "model": {"type": "string"},
    "attack_type": {"enum": ["white_box", "black_box", "transfer", "manual"]}, "defense": TEXT,
    "attack_success_rate": {"type": "number", "minimum": 0, "maximum": 1},
    "total_number_of_jailbreaks": {"type": "integer"}, "number_of_submitted_prompts": {"type": "integer"},
    "total_number_of_queries": COUNT, "total_prompt_tokens": COUNT, "total_response_tokens": COUNT,
    "evaluation_date": {"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}$"},
    "evaluation_llm_provider": {"type": "string"},
    "method_parameters": {"type": "object", "additionalProperties": {"type": ["string", "number"]}},
}  # fmt: skip


def closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object", "properties": properties, "required": sorted(properties),
        "additionalProperties": False,
    }  # fmt: skip


SCHEMA = closed({"parameters": closed(PARAMETERS), "jailbreaks": {"type": "array", "items": closed(ITEM)}})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Record]:
    store = tmp_path_factory.mktemp("store")
    artifact = strings()
    target = model(artifact, WON, [True])
    target.script["adv 5"] = [("", "error")]
    config = {"targets": ["a", "b"], "proxy": None, "adapt": True, "margin": 0.25}
    run_cell = cell(defenses=(SHIELD,), **config)
    record = write_run(store, run_cell, artifact, model(artifact, WON), target)
    return store / record.id, record


def test_the_file_validates_against_the_benchmarks_fields(made: tuple[Path, Record]) -> None:
    content = json.loads(to_json(of_run(made[0])))
    Draft202012Validator.check_schema(SCHEMA)
    Draft202012Validator(SCHEMA).validate(content)


def test_what_was_written_reads_back(made: tuple[Path, Record]) -> None:
    artifact = of_run(made[0], "white_box")
    assert parse(to_json(artifact)) == artifact and artifact.parameters.attack_type == "white_box"
    odd = artifact.jailbreaks[0].model_copy(update={"prompt": 'é "\u2028\n\\ </script>', "jailbroken": True})
    changed = artifact.model_copy(update={"jailbreaks": (odd, *artifact.jailbreaks[1:])})
    assert parse(to_json(changed)) == changed


def test_the_numbers_are_the_records(made: tuple[Path, Record]) -> None:
    artifact, record = of_run(made[0]), made[1]
    p, success = artifact.parameters, record.metric("success")
    assert success is not None and p.attack_success_rate == success.value == 4 / 6
    assert (p.total_number_of_jailbreaks, p.number_of_submitted_prompts) == (4, 6)
    assert (p.method, p.model, p.defense) == ("gcq", "tiny:", "perplexity-filter")
    assert p.evaluation_llm_provider == "tiny" and p.evaluation_date.isoformat() == "2026-01-02"
    assert p.total_number_of_queries == 1 + 12 + 23 + 34 + 45 + 100
    wanted = {"max_queries": 100, "targets": '["a","b"]', "proxy": "null", "adapt": "true", "margin": 0.25}
    assert wanted.items() <= p.method_parameters.items()
    assert p.method_parameters["redteam_record"] == record.id
    assert p.method_parameters["redteam_search_tokens"] == 40 * (1 + 12 + 23 + 34 + 45) + 4000


def test_each_string_is_an_item(made: tuple[Path, Record]) -> None:
    items = of_run(made[0]).jailbreaks
    assert [i.goal for i in items] == list(TEXTS) and [i.index for i in items] == list(range(6))
    assert [i.jailbroken for i in items] == [True, True, False, True, True, False]
    assert [i.queries_to_jailbreak for i in items] == [1, 12, None, 34, 45, None]
    assert [i.number_of_queries for i in items] == [1, 12, 23, 34, 45, 100]
    assert items[0].prompt == "adv 0" and items[0].behavior == "s0" and items[0].category == "harmless"
    assert items[2].response == "No idea.", "an answer that agrees with the verdict"
    assert items[3].response == f" {TEXTS[3]} So." and items[5].response is None


def test_the_command_writes_beside_the_run_or_where_told(made: tuple[Path, Record], tmp_path: Path) -> None:
    folder, record = made
    done = CliRunner().invoke(export, ["jailbreakbench", record.id[:8], "--store", str(folder.parent)])
    assert done.exit_code == 0, done.output
    assert parse((folder / "jailbreakbench.json").read_text()) == of_run(folder)
    out = tmp_path / "x.json"
    words = ["jailbreakbench", str(folder), "--out", str(out), "--attack-type", "transfer"]
    assert CliRunner().invoke(export, words).output.strip() == str(out)
    assert parse(out.read_text()).parameters.attack_type == "transfer"


def test_an_artifact_as_the_benchmark_stores_it_can_be_read() -> None:
    """Its stored files have indices as text; keys that are not known here are left out."""
    item = {**dict.fromkeys(ITEM), "index": "0", "goal": "g", "behavior": "b", "category": "c",
            "jailbroken": True, "extra": 1}  # fmt: skip
    parameters = {
        **dict.fromkeys(PARAMETERS), "method": "PAIR", "model": "vicuna-13b-v1.5", "attack_type": "black_box",
        "attack_success_rate": 0.5, "total_number_of_jailbreaks": 1, "number_of_submitted_prompts": 10,
        "evaluation_date": "2024-01-01", "evaluation_llm_provider": "vllm", "method_parameters": {"n-iter": 3},
    }  # fmt: skip
    found = parse(json.dumps({"parameters": parameters, "jailbreaks": [item]}))
    assert isinstance(found, JailbreakArtifact) and found.jailbreaks[0].index == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["parameters"].pop("method"), "parameters.method: Field required"),
        (lambda d: d["parameters"].update(attack_type="grey_box"), "parameters.attack_type"),
        (lambda d: d["parameters"].update(attack_success_rate=1.5), "parameters.attack_success_rate"),
        (lambda d: d["jailbreaks"][1].update(jailbroken=None), "jailbreaks.1.jailbroken"),
        (lambda d: d["jailbreaks"].pop(0), "expected total_number_of_jailbreaks 3"),
    ],
)
def test_files_that_do_not_fit_are_refused(made: tuple[Path, Record], change: Any, message: str) -> None:
    content = json.loads(to_json(of_run(made[0])))
    change(content)
    with pytest.raises(ArtifactError, match=message):
        parse(json.dumps(content))
    with pytest.raises(ArtifactError, match="is not JSON"):
        parse("{")


def test_runs_that_cannot_be_exported(made: tuple[Path, Record], tmp_path: Path) -> None:
    store = tmp_path
    artifact = strings()
    record = write_run(store, cell(), artifact, model(artifact, WON))
    path = store / record.id / "record.json"
    error = ErrorInfo(type="BudgetExceededError", message="too many queries")
    failed = record.model_copy(update={"status": "unscored", "error": error, "metrics": ()})
    path.write_text(failed.to_json())
    with pytest.raises(RecordError, match="status unscored"):
        of_run(store / record.id)
    poison = Poison(np.zeros(3, np.int64), {"name": "1xs"}, 1, 0, 0)
    poison.save(store / record.id / "artifact.npz")
    digest = digest_file(store / record.id / "artifact.npz")
    ref = {"path": "artifact.npz", "kind": "poison", "sha256": digest}
    path.write_text(Record.model_validate({**record.model_dump(), "artifact": ref}).to_json())
    with pytest.raises(DataError, match="got one that made poison"):
        of_run(store / record.id)
