"""The record: it survives the disk, follows its schema, and what does not is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from redteam.core import record as R
from redteam.core.errors import RecordError
from redteam.core.stats import Estimate


def make_record(**changes):
    cell = R.Cell(
        threat="poisoning", knowledge="adaptive", seed=0,
        task=R.TaskInfo(dataset="d", digest="0", target="image-classifier", model="m", config={}),
        attack=R.Plugin(name="a", version="1", config={"budget": 1}, digest="0"),
    )  # fmt: skip
    parts = {
        "id": cell.id, "status": "ok", "role": "attack", "source": "measured", "cell": cell,
        "metrics": (R.Metric.of("cta", Estimate(0.5, 0.4, 0.6, 10, 1, "wilson")),),
        "cost": R.Cost(wall_s=1, cpu_s=1), "environment": R.environment("cpu"), "created": R.now(),
    }  # fmt: skip
    return R.Record(**{**parts, **changes})


def test_record_round_trip_and_schema():
    record = make_record()
    text = record.to_json()
    assert R.parse(text) == record
    schema = R.json_schema()
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate(json.loads(text))


def test_published_schema_is_the_models_own():
    path = Path(R.__file__).parents[1] / "schema" / "record-v1.json"
    assert json.loads(path.read_text()) == R.json_schema(), "run `python -m scripts.write_schema`"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema_version="2"), "has schema version '2'; this redteam .* reads version '1'"),
        (lambda d: d.update(extra=1), "extra: Extra inputs are not permitted"),
        (lambda d: d["metrics"][0].update(value=0.7), "low <= value <= high"),
        (lambda d: d.update(id="abc"), "expected id .* the hash of the cell"),
        (lambda d: d["cell"].update(seed=5), "the hash of the cell"),
        (lambda d: d.pop("cost"), "cost: Field required"),
        (lambda d: d.update(status="error"), "an error if and only if"),
    ],
)
def test_records_that_do_not_validate(change, message):
    content = json.loads(make_record().to_json())
    change(content)
    with pytest.raises(RecordError, match=message):
        R.parse(json.dumps(content))


def test_nan_and_broken_json_are_refused():
    text = make_record().to_json().replace('"value":0.5', '"value":NaN')
    with pytest.raises(RecordError, match="metrics"):
        R.parse(text)
    with pytest.raises(RecordError, match="is not JSON"):
        R.parse("{")
