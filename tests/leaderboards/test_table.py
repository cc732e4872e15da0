"""Boards: the stored ones, the same bytes from any order, and every way a record can be wrong."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from leaderboards import table
from redteam.core.errors import RecordError
from redteam.core.record import PublishedNumber, Record
from tests.leaderboards.helpers import ENVIRONMENT, PAPER, golden_records, record

GOLDEN = Path(__file__).parent / "golden"
RULES = table.load_rules()


def store(path: Path, records: list[Record]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(r.to_json() + "\n" for r in records))
    return path


def lines(records: list[Record]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table.to_csv(records, RULES))))


# To renew after a meant change: python -m tests.leaderboards.test_table
@pytest.mark.parametrize("name", ["poisoning.md", "poisoning.csv"])
def test_the_stored_boards_follow_from_the_stored_records(tmp_path: Path, name: str) -> None:
    table.build([store(tmp_path / "r.jsonl", golden_records())], tmp_path / "out")
    assert (tmp_path / "out" / name).read_text() == (GOLDEN / name).read_text()


@settings(deadline=None, max_examples=20)
@given(st.permutations(golden_records()))
def test_the_order_of_records_changes_no_byte(records: list[Record]) -> None:
    assert table.to_markdown(records, RULES) == (GOLDEN / "poisoning.md").read_text()
    assert table.to_csv(records, RULES) == (GOLDEN / "poisoning.csv").read_text()


def test_the_csv_is_tidy_and_holds_every_number_once() -> None:
    found = lines(golden_records())
    measured = [line for line in found if line["status"] == "ok" and line["origin"] != "published"]
    keys = [tuple(line[k] for k in ("table", "knowledge", "record_ids", "metric")) for line in measured]
    assert len(set(keys)) == len(keys)
    ids = {i for line in found for i in line["record_ids"].split()}
    assert ids == {r.id for r in golden_records()}
    (lift,) = [m for m in measured if m["attack"] == "outsider" and m["metric"] == "trigger_lift"]
    assert (lift["value"], lift["low"], lift["high"]) == ("0.200000", "0.150000", "0.250000")
    assert (lift["origin"], lift["rank_first"], lift["rank_last"]) == ("external", "2", "4")


def test_failures_are_listed_and_not_ranked() -> None:
    failed = record("badnets", status="error", role="control", seed=4)
    board = table.to_markdown([record(), failed], RULES)
    reason = "error: LimitReachedError: out of time \\| after 60 s"
    assert f"badnets, control, budget 30, seed 4: {reason} (record {failed.id})" in board
    (line,) = [x for x in lines([record(), failed]) if x["status"] == "error"]
    assert line["metric"] == line["rank_first"] == "" and "out of time" in line["reason"]
    alone = table.to_markdown([failed], RULES)
    assert "Not scored" in alone and "| rank |" not in alone
    assert "not scored: badnets" in table.show([failed], RULES).plain


def test_published_numbers_stand_beside_and_null_says_not_available() -> None:
    board = table.to_markdown([record(published=PAPER), record("bare")], RULES)
    head, _, bare, flip = [line.split(" | ") for line in board.splitlines() if line.startswith("|")]
    place = head.index("published pta")
    assert head[place - 1] == "pta"
    assert flip[place] == "0.994 (jha2023flip, abstract)" and bare[place] == "-"
    assert flip[head.index("published ra")] == "not available (jha2023flip, table 2)"
    jpeg = table.to_markdown([record(dataset="cifar10-jpeg")], RULES)
    assert "| published" not in jpeg


def test_origins_other_than_measured_are_flagged() -> None:
    board = table.to_markdown([record("a", source="reported"), record("b", source="external")], RULES)
    rows = {line.split(" | ")[1]: line for line in board.splitlines() if line.startswith(("| 1", "| -"))}
    assert "source: reported" in rows["a"] and rows["a"].startswith("| - ")
    assert "source: external" in rows["b"] and rows["b"].startswith("| 1 ")
    assert "redteam attack" not in board.split("## ")[1]


def test_text_from_records_cannot_break_the_page() -> None:
    nasty = PublishedNumber(metric="pta", value=0.5, source="a|b", where="<script>\n# x")
    board = table.to_markdown([record("<img>|`x`", published=(nasty,))], RULES)
    outside_code = "".join(board.split("```")[::2])
    assert "<script>" not in board and "<img>" not in outside_code and "\n# x" not in board
    rows = [line for line in board.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1


def test_the_header_says_where_numbers_come_from() -> None:
    other = ENVIRONMENT.model_copy(update={"git_commit": None, "dirty": None, "suite": "0.2.0"})
    board = table.to_markdown([record(), record(seed=1, environment=other)], RULES)
    assert "- Suite: 0.1.0, 0.2.0" in board and "- Seeds: 0, 1" in board
    assert "0123456789ab (clean), no commit recorded (state of the tree unknown)" in board
    assert "redteam attack flip --dataset digits --model preact-resnet8 --budget 30 --seeds 2\n" in board


def test_the_command_names_first_seeds_and_is_left_out_where_it_would_not_give_the_row() -> None:
    later = table.to_markdown([record(seed=3), record(seed=4)], RULES)
    assert "--budget 30 --seeds 2 --seed 3\n" in later
    assert "redteam attack" not in table.to_markdown([record(seed=0), record(seed=2)], RULES).split("## ")[1]
    assert "--dataset cifar10 " in table.to_markdown([record(dataset="cifar10-jpeg")], RULES)


def test_the_terminal_table_fits_100_columns_with_brackets_intact() -> None:
    long = record("an-attack-with-a-very-long-name-indeed", settings={"labels": "x" * 150})
    text = table.show([*golden_records(), long, record("an-attack-with-a-very-long-name-indeed")], RULES)
    assert max(map(len, text.plain.splitlines())) <= 100
    console = Console(width=100, file=io.StringIO())
    console.print(text)
    assert console.file.getvalue().rstrip() == text.plain.rstrip()  # type: ignore[attr-defined]


# ---------------------------------------------------------------- reading


def test_folders_runs_and_single_records_are_read_once_each(tmp_path: Path) -> None:
    a, b, c = record(seed=0), record(seed=1), record(seed=2)
    store(tmp_path / "x.jsonl", [a, b, a])
    (tmp_path / b.id).mkdir()
    (tmp_path / b.id / "record.json").write_text(b.to_json(indent=2))
    (tmp_path / "stages").mkdir()
    single = tmp_path / "one.json"
    single.write_text(c.to_json())
    found = table.read_records([tmp_path, single])
    assert found == sorted([a, b, c], key=lambda r: r.id)


@pytest.mark.parametrize("turned", [False, True])
def test_of_two_records_of_a_cell_the_later_wins(tmp_path: Path, turned: bool) -> None:
    pair = [record(day=1, lift=0.1), record(day=2, lift=0.7)]
    (found,) = table.read_records([store(tmp_path / "r.jsonl", pair[::-1] if turned else pair)])
    assert found == pair[1]


def test_separators_inside_text_do_not_end_a_line(tmp_path: Path) -> None:
    paper = PublishedNumber(metric="pta", value=None, source="k", where="a\u2028b\x85c")
    made = record(published=(paper,))
    assert table.read_records([store(tmp_path / "r.jsonl", [made])]) == [made]


def changed(made: Record, **fields: object) -> str:
    return json.dumps({**json.loads(made.to_json()), **fields})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is not JSON"),
        (changed(record(), schema_version="2"), "schema version '2'.*newer"),
        (changed(record(), id="0" * 16), "the hash of the cell"),
        (changed(record(), surprise=1), "surprise"),
        (changed(record(), status="error"), "if and only if the status is not ok"),
    ],
)
def test_bad_lines_are_refused_with_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(f"{record().to_json()}\n\n{line}\n")
    with pytest.raises(RecordError, match=rf"r\.jsonl:3.*{message}"):
        table.read_records([path])


def test_missing_and_odd_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="cannot read"):
        table.read_records([tmp_path / "none.jsonl"])
    with pytest.raises(RecordError, match=r"expected a folder"):
        table.read_records([tmp_path / "board.md"])


def test_a_threat_without_rules_is_refused() -> None:
    with pytest.raises(RecordError, match=r"no rules for the threat '\.\./evil'"):
        table.to_markdown([record(threat="../evil")], RULES)


# ---------------------------------------------------------------- verify


def test_verify_finds_nothing_after_a_build(tmp_path: Path) -> None:
    path = store(tmp_path / "r" / "r.jsonl", golden_records())
    written = table.build([path], tmp_path / "boards")
    assert [p.name for p in written] == ["poisoning.md", "poisoning.csv"]
    assert table.verify([path], tmp_path / "boards") == []


def test_verify_collects_bad_records_and_changed_boards(tmp_path: Path) -> None:
    path = store(tmp_path / "r" / "r.jsonl", golden_records())
    table.build([path], tmp_path / "boards")
    board = tmp_path / "boards" / "poisoning.md"
    board.write_text(board.read_text().replace("0.520", "0.920"))
    (tmp_path / "boards" / "poisoning.csv").unlink()
    with path.open("a") as f:
        f.write("{\n" + changed(record(), schema_version="9") + "\n")
    problems = table.verify([path], tmp_path / "boards")
    assert len(problems) == 4
    for problem, word in zip(problems, ("not JSON", "'9'", "does not follow", "no board"), strict=True):
        assert word in problem


def test_verify_finds_boards_without_records(tmp_path: Path) -> None:
    path = store(tmp_path / "r.jsonl", golden_records())
    table.build([path], tmp_path)
    path.write_text("")
    assert [("no records" in p) for p in table.verify([path], tmp_path)] == [True, True]


def test_importing_the_tables_loads_no_torch_and_no_plug_in() -> None:
    code = (
        "import sys, leaderboards.table; "
        "bad = [m for m in sys.modules if m.split('.')[0] in ('torch', 'attacks', 'defenses', 'pandas')]; "
        "sys.exit(', '.join(bad) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    for name, text in (("md", table.to_markdown), ("csv", table.to_csv)):
        (GOLDEN / f"poisoning.{name}").write_text(text(golden_records(), RULES))
