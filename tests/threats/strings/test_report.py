"""The page of a run of adversarial strings, and the boards of such records."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leaderboards import table
from redteam.core.record import Metric, Record
from redteam.report.beside import comparable, same_question
from redteam.threats.strings.metrics import OUTCOME_COLUMNS
from redteam.threats.strings.report import render
from redteam.threats.strings.report import series as string_series
from redteam.threats.strings.report.words import DEFINITIONS, agreement
from tests.leaderboards.helpers import record as poisoning_record
from tests.threats.pages import assert_metrics, assert_refuses, assert_whole, text_of
from tests.threats.strings.helpers import SHIELD, TEXTS, cell, model, strings, write_run

Stored = tuple[Path, list[Record]]
WON = [[True] * 3, [True, True, False], [True, False, False], [False] * 3, [True] * 3, [False] * 3]
ODD = '<script>alert("x")</script>\nsecond line \u202e\x07 & more'


def made_by(attack: str, **parts: Any) -> Any:
    return strings(prompts=tuple(f"{attack} {i}" for i in range(6)), **parts)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """An attack with two seeds, another attack, two controls, and a defended run."""
    root = tmp_path_factory.mktemp("store")
    own = strings()
    target = model(own, WON, [True])
    target.script["adv 3"] = [ODD]
    target.script["adv 5"] = [("", "refused"), ("", "error")]
    records = [write_run(root, cell(), own, target)]
    records.append(write_run(root, cell(seed=1), own, model(own, WON)))
    for name, role, hits in (("other", "attack", 4), ("init-only", "control", 1), ("random", "control", 0)):
        one = made_by(name)
        won = [[i < hits] * 3 for i in range(6)]
        records.append(write_run(root, cell(name), one, model(one, won), role=role))
    behind = made_by("behind")
    shielded = model(behind, WON)
    records.append(write_run(root, cell(defenses=(SHIELD,)), behind, model(behind, WON), shielded))
    return root, records


@pytest.fixture(scope="module")
def page(store: Stored) -> str:
    return render(store[0] / store[1][0].id, store[1], None)


def test_every_metric_stands_there_and_the_page_is_whole(store: Stored, page: str) -> None:
    assert_metrics(store[1][0], page, DEFINITIONS, victims=False)
    assert_whole(page)
    assert render(store[0] / store[1][0].id, store[1][::-1], None) == page, "same inputs, same page"
    assert "6 strings, 3 fresh completions of each; seed 0" in text_of(page)


def test_text_from_models_is_escaped_and_its_control_characters_are_shown(page: str) -> None:
    assert (
        "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;\u23ce\nsecond line \\u202e\\x07 &amp; more" in page
    )
    assert "\u202e" not in page and "\x07" not in page


def test_each_string_shows_prompt_answer_and_how_often_it_came_again(page: str) -> None:
    seen = text_of(page)
    for i, (text, again) in enumerate(zip(TEXTS, ("3/3", "2/3", "1/3", "0/3", "3/3", "0/3"), strict=True)):
        at = "not found in 100" if i == 5 else str(1 + 11 * i)
        finish = "refused" if i == 5 else "stop"
        assert (
            f"s{i} {len(text.split())} {at} {again} {'yes' if i == 0 else 'no'} {finish} target {text}"
            in seen
        )
    assert f"<b> {TEXTS[0]}</b> So." in page
    assert page.count('class="keep hit"') == 3, "won strings are marked"


def test_many_strings_fold_away(tmp_path: Path) -> None:
    texts = tuple(f"String number {i} stands here." for i in range(25))
    artifact = strings(texts)
    record = write_run(tmp_path, cell(), artifact, model(artifact, [[True] * 3] * 25))
    told = render(tmp_path / record.id, [], None)
    assert "5 more strings" in told and all(html.escape(t) in told for t in texts)


def test_how_answers_ended_is_counted_for_each_arm(page: str) -> None:
    seen = text_of(page)
    assert "asked exact other answer refused filtered truncated error timeout" in seen
    assert "adversarial prompts, each repeat 9 6 1 0 0 2 0" in seen
    assert (
        "initial prompts 1 5 0 0 0 0 0" in seen and "no adversarial string, undefended 0 6 0 0 0 0 0" in seen
    )


def test_controls_and_seeds_stand_beside_the_attack(page: str) -> None:
    seen = text_of(page)
    assert "Controls beside this run reached a success of: init-only (control) 0.167" in seen
    assert (
        "The interval of this run does not lie above that of init-only (control), random (control)." in seen
    )
    rows = re.findall(r"<tr><td>([^<]*)</td><td class=\"stacked\">([\d.]+)", page)
    assert rows[:4] == [("gcq", "0.500"), ("other", "0.667"), ("init-only (control)", "0.167"),
                        ("random (control)", "0.000")]  # fmt: skip
    assert re.search(r"gcq .* 23\.0 / 23\.0 2 other", seen), "medians of both seeds"
    assert "1 other record was left out" in seen, "the defended run is another question"
    assert 'aria-label="share of strings found against queries of gcq, other, init-only (control)' in page


def test_the_curve_counts_the_strings_found_by_then(store: Stored) -> None:
    root, records = store
    beside = comparable(records[0], records, same_question)
    gcq = next(s for s in string_series.series(root / records[0].id, beside) if s.label == "gcq")
    assert gcq.found_at is not None and gcq.found_at.shape == (2, 6) and gcq.cap == 100
    points = {q: (e.value, e.n) for q, e in gcq.curve()}
    assert points == {0: (0, 6), 1: (1 / 6, 6), 12: (2 / 6, 6), 23: (3 / 6, 6), 34: (4 / 6, 6),
                      45: (5 / 6, 6), 100: (5 / 6, 6)}  # fmt: skip


def test_a_long_curve_keeps_its_ends() -> None:
    at = np.arange(500).reshape(1, -1)
    one = string_series.Series("x", "attack", frozenset("i"), {}, (), at, 1000.0)
    points = one.curve()
    assert len(points) <= 82 and points[0][0] == 0 and points[-1] == (1000.0, points[-2][1])
    assert all(e.value == pytest.approx((q + 1) / 500) for q, e in points[:-1])
    none = string_series.Series("x", "attack", frozenset("i"), {}, (), np.full((1, 4), -1), None)
    assert [(q, e.value) for q, e in none.curve()] == [(0.0, 0.0)]


def test_a_control_that_asks_nothing_is_a_level_line(tmp_path: Path) -> None:
    never = {"queries": np.zeros(6, int), "found": np.zeros(6, bool), "queries_at": np.full(6, -1),
             "tokens_at": np.full(6, -1), "usd_at": np.full(6, -1.0)}  # fmt: skip
    idle = strings(**never)
    record = write_run(tmp_path, cell("init-only"), idle, model(idle, WON), role="control")
    (one,) = string_series.series(tmp_path / record.id, [record])
    assert not one.asked and [(q, e.value) for q, e in one.curve()] == [(0.0, 0.5), (100.0, 0.5)]
    assert "This run is itself a control." in text_of(render(tmp_path / record.id, [], None))


def test_records_without_their_files_are_told_but_not_drawn(store: Stored) -> None:
    root, records = store
    gone = records[2].model_copy(update={"cell": cell("elsewhere"), "id": cell("elsewhere").id})
    told = text_of(render(root / records[0].id, [gone], None))
    assert "elsewhere (not drawn) 0.667" in told and "gcq (not drawn)" not in told
    assert "No control was found beside this run" in told


def test_a_defended_run_tells_its_price(store: Stored) -> None:
    root, records = store
    told = text_of(render(root / records[5].id, records, None))
    assert "behind perplexity-filter (the attack knew of it)" in told
    assert "The defended model answers harmless prompts at a rate of 1.000" in told
    assert "benign_same 1.000" in told


def test_the_trace_of_one_search_is_drawn(page: str) -> None:
    seen = text_of(page)
    assert "for string s0 (" in seen and "The search first saw the string after 1 query." in seen
    assert "1 30.000 9 12.500 30 3.000" in seen


def test_a_search_without_a_trace_or_anything_found(tmp_path: Path) -> None:
    never = np.full(6, -1)
    artifact = strings(
        trace={}, found=np.zeros(6, bool), queries_at=never, tokens_at=never, usd_at=never * 1.0
    )
    record = write_run(tmp_path, cell(), artifact, model(artifact, [[False] * 3] * 6))
    told = text_of(render(tmp_path / record.id, [], None))
    assert "The search kept no trace of exact losses." in told
    assert "so there is nothing to reproduce" in told and "none found" in told


def test_files_that_do_not_fit_and_runs_without_a_score_are_refused(tmp_path: Path) -> None:
    artifact = strings()
    record = write_run(tmp_path, cell(), artifact, model(artifact, WON))
    assert_refuses(render, tmp_path / record.id, ["outcomes.parquet", "search.parquet"])


@pytest.mark.parametrize(
    ("text", "target", "parts"),
    [
        (" The cat.", "The cat", (" The cat", ".")),
        ("The dog", "The cat", ("The ", "dog")),
        ("", "The cat", ("", "")),
        ("\n\nThe cat", " The cat sat", ("\n\nThe cat", "")),
    ],
)
def test_how_far_an_answer_agrees(text: str, target: str, parts: tuple[str, str]) -> None:
    assert agreement(text, target) == parts


# ---------------------------------------------------------------- boards


def board_record(
    attack: str = "gcq", *, success: float, role: Any = "attack", half: float = 0.05, **rest: Any
) -> Record:
    """A record of strings with the metrics of the board, around a success."""
    numbers = {
        "success": success,
        "search_lift": success - 0.1,
        "initial_success": 0.1,
        "success_found": success,
    }
    metrics = [
        Metric(name=k, value=v, low=max(-1.0, v - half), high=min(1.0, v + half), n=40, confidence=0.95,
               method="wilson", seeds=1)
        for k, v in numbers.items()
    ]  # fmt: skip
    metrics += [metrics[0].model_copy(update={"group": "length<=8", "n": 10})]
    found = cell(attack, **rest)
    base = poisoning_record(role=role, metrics=metrics)
    return base.model_copy(update={"cell": found, "id": found.id})


def test_records_of_strings_build_a_board(tmp_path: Path) -> None:
    records = [
        *(board_record(seed=s, success=0.8 + 0.01 * s) for s in range(3)),
        board_record("other", success=0.3),
        board_record("init-only", success=0.1, role="control"),
        board_record(success=0.4, defenses=(SHIELD,)),
        board_record(success=0.9, max_queries=1000),
    ]
    lines = tmp_path / "records.jsonl"
    lines.write_text("".join(r.to_json() + "\n" for r in records))
    written = table.build([lines], tmp_path / "boards")
    assert [p.name for p in written] == ["strings.md", "strings.csv"]
    board = written[0].read_text()
    assert "# Leaderboard: strings" in board and "ranked by success, descending" in board
    assert "perplexity-filter" in board and "## harmless, tiny:" in board
    rows = [
        line.split(" | ") for line in board.splitlines() if line.startswith("| 1 ") or line.startswith("| 2 ")
    ]
    ranked = [(r[0], r[1], r[3]) for r in rows]
    assert ranked[:3] == [("| 1", "gcq", "100"), ("| 2", "other", "100"), ("| 1", "gcq", "1000")]
    assert ranked[3:] == [("| 1", "gcq", "100")], "behind the defence"
    assert "| - | init-only | control | 100 |" in board
    assert table.verify([lines], tmp_path / "boards") == []
    assert "gcq" in table.show(table.read_records([lines]), table.load_rules()).plain


def test_the_rules_rank_strings_by_success() -> None:
    rules = table.load_rules()["strings"]
    assert (rules.ranking.metric, rules.ranking.order) == ("success", "descending")
    assert rules.budget == "attack.config.max_queries" and set(rules.metrics) <= set(DEFINITIONS)
    assert "text" in OUTCOME_COLUMNS, "raw answers are kept, so any scorer can be run again"
