"""Plug-ins without packaging: `FILE.py:NAME` wherever a plug-in's name is taken."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from redteam.cli import cli
from redteam.core import registry
from redteam.core.context import Context
from redteam.core.device import Device
from redteam.core.errors import ConfigError, DataError
from redteam.core.hashing import digest_file
from redteam.core.plan import Request, parse_defenses, plan, rebuild
from redteam.core.seeding import SeedPath
from redteam.core.threat import DataSource

OUTSIDER = Path(__file__).parents[1] / "outsider" / "outsider"
FAST = {"model": "cnn", "epochs": 1}


@pytest.fixture
def swap(tmp_path, monkeypatch):
    """An attack in a file of its own, and none read before."""
    monkeypatch.setattr(registry, "_from_files", {})
    path = tmp_path / "mine.py"
    path.write_text((OUTSIDER / "swap.py").read_text())
    return path


def planned(path, **more):
    request = Request(attack=f"{path}:SPEC", dataset="digits", target=FAST, **more)
    return plan(request, DataSource(), Device("cpu"))


def test_the_files_digest_is_in_the_cell_and_decides_its_id(swap):
    (job,) = planned(swap)
    assert (job.cell.attack.name, job.cell.attack.sha256) == ("outsider-swap", digest_file(swap))
    assert job.files == (("attack", f"{swap.resolve()}:SPEC"),)
    swap.write_text(swap.read_text() + "\n# another file\n")
    registry._from_files.clear()
    (other,) = planned(swap)
    assert other.cell.id != job.cell.id
    with pytest.raises(DataError, match="changed since planning"):
        rebuild(job, DataSource(), Context(Device("cpu"), SeedPath(0)))


def test_what_runs_is_the_source_whose_digest_is_recorded(swap):
    text, times = swap.read_text(), (1, 1)
    for version in ("1", "2"):
        swap.write_text(
            text.replace('version="1"', f'version="{version}"')
            + "\nopen(__file__, 'a').write('# rewritten')\n"
        )
        os.utime(swap, times)
        sha256 = digest_file(swap)
        registry._from_files.clear()
        spec = registry.get("attack", f"{swap}:SPEC")
        assert (spec.version, registry.file_of(spec).sha256) == (version, sha256)


def test_an_installed_plugin_has_no_digest_and_keeps_its_id():
    request = Request(attack="random-flips", dataset="digits", target=FAST)
    (job,) = plan(request, DataSource(), Device("cpu"))
    assert job.files == () and "sha256" not in job.cell.model_dump(mode="json")["attack"]


@pytest.mark.parametrize("name", ["SPEC", "outsider-swap"])
def test_a_plugin_is_named_by_its_variable_or_by_its_own_name(swap, name):
    assert registry.get("attack", f"{swap}:{name}").name == "outsider-swap"
    assert registry.get("attack", "outsider-swap").name == "outsider-swap"
    assert "first rows of the source class" in registry.summary("attack", f"{swap}:{name}")


def test_attack_and_defence_from_files_run_in_worker_processes(swap, tmp_path):
    drop = tmp_path / "drop.py"
    drop.write_text((OUTSIDER / "drop.py").read_text())
    words = ["attack", f"{swap}:SPEC", "--dataset", "digits", "--model", "cnn", "--victim-epochs", "1", "--seeds", "2",
             "--workers", "2", "--defense", f"{drop}:SPEC:keep=0.8", "--json"]  # fmt: skip
    words += ["--store", str(tmp_path / "runs")]
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    records = json.loads(done.stdout)["records"]
    assert [r["status"] for r in records] == ["ok", "ok"]
    for record in records:
        (defense,) = record["cell"]["defenses"]
        assert record["cell"]["attack"]["sha256"] == digest_file(swap)
        assert (defense["config"], defense["sha256"]) == ({"keep": 0.8}, digest_file(drop))
    again = CliRunner().invoke(cli, ["score", records[0]["id"], "--store", str(tmp_path / "runs")])
    assert again.exit_code == 0 and "agrees" in again.output


def test_show_and_evaluate_take_a_file(swap, tmp_path):
    shown = CliRunner().invoke(cli, ["show", f"{swap}:SPEC"])
    assert shown.exit_code == 0 and "Kind: attack" in shown.output
    drop = tmp_path / "drop.py"
    drop.write_text((OUTSIDER / "drop.py").read_text())
    words = ["evaluate", f"{drop}:SPEC:keep=0.7", "--dataset", "digits", "--dry-run", "--json"]
    words += ["-o", "target.model=mlp"]
    cells = json.loads(CliRunner().invoke(cli, words, catch_exceptions=False).stdout)["cells"]
    assert {d["config"]["keep"] for c in cells for d in c["defenses"]} == {0.7}


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("X = 1\n", "SPEC", "has no plug-in 'SPEC'. It holds no Spec at all"),
        ("SPEC = 1\n", "SPEC", r"SPEC is no plug-in: expected a redteam.core.types.Spec, got a int"),
        ("def f():\n    return 1 / 0\n\nSPEC = f()\n", "SPEC",
         r"imported: ZeroDivisionError: division by zero\n  .*bad.py:4, in <module>: SPEC = f\(\)\n  .*bad.py:2, in f"),
        ("import no_such_package\n", "SPEC", r"ModuleNotFoundError: No module named 'no_such_package'\n  .*bad.py:1"),
        ("def f(:\n", "SPEC", r"cannot be imported: SyntaxError: .*bad.py, line 1"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said(tmp_path, monkeypatch, text, name, message):
    monkeypatch.setattr(registry, "_from_files", {})
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        registry.get("attack", f"{path}:{name}")


def test_a_missing_file_a_wrong_name_another_kind_and_a_taken_name_are_refused(swap, tmp_path):
    with pytest.raises(ConfigError, match="no file at .*none.py; expected FILE.py:NAME"):
        registry.get("attack", f"{tmp_path}/none.py:SPEC")
    with pytest.raises(ConfigError, match="has no plug-in 'SPEK'. Did you mean 'SPEC'"):
        registry.get("attack", f"{swap}:SPEK")
    with pytest.raises(ConfigError, match="is a plug-in of the kind 'attack'; expected 'defense'"):
        registry.get("defense", f"{swap}:SPEC")
    taken = tmp_path / "taken.py"
    taken.write_text(swap.read_text().replace('"outsider-swap"', '"flip"'))
    with pytest.raises(
        ConfigError, match="the attack 'flip' is installed already; give this one another name"
    ):
        registry.get("attack", f"{taken}:SPEC")
    registry.get("attack", f"{swap}:SPEC")
    twin = tmp_path / "twin.py"
    twin.write_text(swap.read_text() + "\n")
    with pytest.raises(ConfigError, match="two files offer the attack 'outsider-swap'"):
        registry.get("attack", f"{twin}:SPEC")


def test_a_config_whose_settings_nobody_fills_in_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_from_files", {})
    path = tmp_path / "mine.py"
    lines = ["from dataclasses import replace", "from attacks.poisoning.random_flips import SPEC as of",
             "SPEC = replace(of, name='my-flips', resolve=None)"]  # fmt: skip
    path.write_text("\n".join(lines))
    with pytest.raises(
        ConfigError, match=r"my-flips: some .* give it resolve=attacks.poisoning._backdoor.resolve"
    ):
        planned(path)


def test_settings_behind_a_file_are_split_off():
    assert parse_defenses(["a/b.py:SPEC:x=1,y=2", "a/b.py:SPEC", "shadow:k=3"]) == (
        ("a/b.py:SPEC", {"x": "1", "y": "2"}), ("a/b.py:SPEC", {}), ("shadow", {"k": "3"}),
    )  # fmt: skip
