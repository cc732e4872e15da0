"""The rules file is checked before anything is built from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from leaderboards.rules import board_of, load_rules
from redteam.core.errors import ConfigError
from redteam.core.threat import threats

TEXT = threats()["poisoning"].board.read_text()


def test_the_shipped_rules_rank_poisoning_by_trigger_lift() -> None:
    rules = load_rules()["poisoning"]
    assert (rules.ranking.metric, rules.ranking.order) == ("trigger_lift", "descending")
    assert rules.metrics[:7] == ("cta", "pta", "trigger_lift", "asr", "ra", "base_pta", "cta_drop")
    assert {"filter_tpr", "filter_fpr", "filter_auroc", "retrain_cost"} <= set(rules.metrics)


def test_a_federation_has_a_board_of_its_own_and_other_targets_that_of_their_threat() -> None:
    rules = load_rules()
    assert board_of("poisoning", "federation", rules) == "poisoning-federation"
    assert board_of("poisoning", "image-classifier", rules) == "poisoning"
    assert board_of("unheard", "of", rules) == "unheard"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("min_cells = 1", "min_cel = 1", "min_cel.*Did you mean 'min_cells'"),
        ("min_cells = 1", "min_cells = 0", "min_cells"),
        ("min_cells = 1", "", "min_cells: Field required"),
        ('metric = "trigger_lift"', 'metric = "lift"', "'lift' is not among the metrics"),
        ('order = "descending"', 'order = "down"', "order"),
        ('order = "descending"', 'order = "descending", by = 1', "by"),
        ('compact = ["cta"', 'compact = ["ctaa"', "Did you mean 'cta'"),
        ('"task.dataset",', '"task.dataset", "attack.config.budget",', "cannot also be held fixed"),
        ('"task.dataset",', '"task.dataset", "task.dataset",', "each name once"),
        ('"task.dataset",', '"cell.dataset",', "no part of a cell"),
        ("[poisoning]", "[poisoning", "not TOML"),
    ],
)
def test_bad_rules_are_refused_by_name(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in TEXT
    path = tmp_path / "rules.toml"
    path.write_text(TEXT.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message):
        load_rules(path)


def test_missing_rules_are_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_rules(tmp_path / "none.toml")
