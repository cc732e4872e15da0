"""What must work for whatever threat is installed, through the command line."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner

from redteam.cli import cli
from redteam.core import registry
from redteam.core.errors import ConfigError
from redteam.core.record import parse
from redteam.core.store import Store
from redteam.core.threat import threats

KINDS = sorted(entry.kind for threat in threats().values() for entry in threat.targets)


def cheapest(kind: str) -> str:
    """A control on a type of target, or an attack where there is none."""
    on = [s for n in registry.names("attack") if (s := registry.get("attack", n)).threat.target == kind]
    return min(on, key=lambda s: (s.role != "control", not s.deterministic, s.name)).name


@pytest.mark.parametrize("kind", KINDS)
def test_attack_score_and_report(kind, tmp_path):
    name, store = cheapest(kind), ["--store", str(tmp_path)]
    preset = "smoke" if "smoke" in registry.get("attack", name).presets else "default"
    words = ["attack", name, "--preset", preset, "--controls", "none", "--workers", "1", "--json", *store]
    words += ["--dataset", "digits", "-o", "target.epochs=1"] if kind == "trainable" else []
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)["records"][0]
    scored = CliRunner().invoke(cli, ["score", record["id"], *store], catch_exceptions=False)
    assert scored.exit_code == 0 and "agrees" in scored.output
    told = CliRunner().invoke(cli, ["report", record["id"], *store], catch_exceptions=False)
    assert told.exit_code == 0, told.output
    page = (tmp_path / record["id"] / "report.html").read_text()
    assert page.startswith("<!doctype html>") and page.rstrip().endswith("</html>")
    shown = [m for m in record["metrics"] if m["group"] is None]
    assert all(text in page for text in (record["id"], name, f"redteam attack {name}"))
    assert shown and all(m["name"] in page for m in shown)
    numbers = set(re.findall(r"-?\d+(?:\.\d+)?", page))
    # Fractions have three digits; counts, and images for each example, may have fewer.
    told = {
        m["name"]: {f"{m['value']:.{n}f}" for n in ((3,) if m["value"] <= 1 else (0, 1, 3))} for m in shown
    }
    assert [name for name, texts in told.items() if not texts & numbers] == []


def test_a_record_of_a_threat_that_is_not_installed_has_no_page(tmp_path):
    words = ["attack", "no-attack", "--dataset", "digits", "--model", "cnn", "--victim-epochs", "1", "--json"]
    done = CliRunner().invoke(cli, [*words, "--store", str(tmp_path)], catch_exceptions=False)
    record = parse(json.dumps(json.loads(done.stdout)["records"][0]), "the run")
    task = record.cell.task.model_copy(update={"target": "of-another-package"})
    cell = record.cell.model_copy(update={"task": task})
    Store(tmp_path).save_record(record.model_copy(update={"cell": cell, "id": cell.id}))
    with pytest.raises(
        ConfigError, match="no installed threat has a page about 'poisoning' of a 'of-another-package'"
    ):
        CliRunner().invoke(cli, ["report", cell.id, "--store", str(tmp_path)], catch_exceptions=False)
