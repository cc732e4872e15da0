"""The terminal table pools seeds and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from redteam.cli.render import print_records
from redteam.core import record as R
from redteam.core.stats import Estimate

METRICS = ("cta", "pta", "trigger_lift", "asr", "ra", "base_pta", "cta_drop")


def make(pta, seed=0, defenses=(), dataset="d", budget=1, role="attack", status="ok"):
    cell = R.Cell(
        threat="poisoning", knowledge="adaptive", seed=seed, defenses=defenses,
        task=R.TaskInfo(dataset=dataset, digest="0", target="image-classifier", model="m", config={}),
        attack=R.Plugin(name="a", version="1", config={"budget": budget}, digest=str(budget)),
    )  # fmt: skip
    estimate = Estimate(pta, max(0.0, pta - 0.01), min(1.0, pta + 0.01), 100, 1, "wilson")
    return R.Record(
        id=cell.id, status=status, role=role, source="measured", cell=cell, cost=R.Cost(wall_s=1, cpu_s=1),
            metrics=tuple(R.Metric.of(m, estimate) for m in METRICS if status == "ok"),
        environment=R.environment("cpu"), created=R.now(),
        error=None if status == "ok" else R.ErrorInfo(type="RuntimeError", message="[bold]why"),
    )  # fmt: skip


def wall(poisons, oracle=("number of poisons",)):
    return R.DefensePlugin(
        name="spectre", version="1", config={"poisons": poisons, "factor": 1.0}, oracle=oracle
    )


def test_defended_and_undefended_cells_share_a_table_and_say_what_stands_before_them(capsys):
    defended = make(0.1, defenses=(R.DefensePlugin(name="wall", version="1", config={}),))
    print_records([make(0.9), defended, make(0.5, dataset="e")], Path("s"))
    out = capsys.readouterr().out
    assert out.count("m on d") == 1 and out.count("m on e") == 1
    assert "nothing" in out and "wall, adaptive" in out
    assert all(value in out for value in ("0.900", "0.100", "0.500"))


def test_what_a_defence_is_told_goes_without_saying_and_a_wrong_number_does_not(capsys):
    print_records(
        [make(0.1, budget=7, defenses=(wall(7),)), make(0.2, budget=7, defenses=(wall(9),))], Path("s")
    )
    out = " ".join(capsys.readouterr().out.split())
    assert "poisons=9" in out and "poisons=7" not in out


def test_seeds_are_pooled_and_budgets_are_not(capsys):
    print_records([make(0.2, seed=0), make(0.4, seed=1), make(0.8, budget=2)], Path("s"))
    out = capsys.readouterr().out
    assert "0.300" in out and "0.800" in out and "0.200" not in out


def test_a_failed_cell_says_why(capsys):
    print_records([make(0.0, status="error"), make(0.7, seed=1)], Path("s"))
    out = capsys.readouterr().out
    assert "a seed 0: error: [bold]why" in out and "0.700" in out


@pytest.mark.parametrize("columns", ["40", "200"])
def test_no_column_vanishes_on_a_narrow_terminal(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    print_records([make(0.25)], Path("s"))
    out = capsys.readouterr().out
    words = ("attack", "(attack)", "budget", "cta", "trigger_lift", "seeds", "0.250")
    assert all(word in out for word in words)
