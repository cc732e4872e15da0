"""The rule table: what the embedded one says, and what is refused of one of the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redteam.core.errors import ConfigError
from redteam.threats.agents.data.profiles import embedded_fields, embedded_tasks, make_profiles
from redteam.threats.agents.data.rules import EMBEDDED_RULES, read_rules
from redteam.threats.agents.nouns import LABELS, Field, RuleTable, Task

FIELDS = tuple(Field(name=n, words=n, kind="text") for n in ("phone", "salary", "diet"))
TASKS = tuple(Task(id=i, name=i, description="d", recipient="r") for i in ("loan", "table"))
GOOD = """
version = "7"
[tasks.loan]
allowed = ["phone", "salary"]
forbidden = ["diet"]
[tasks.table]
allowed = ["diet"]
forbidden = ["salary"]
ambiguous = ["phone"]
[tasks.table.reasons]
phone = "some call, some do not"
"""


def embedded() -> RuleTable:
    return read_rules(None, embedded_fields(), embedded_tasks())


def write(folder: Path, text: str) -> Path:
    path = folder / "rules.toml"
    path.write_text(text)
    return path


def test_every_field_has_one_label_in_every_task_and_each_task_has_enough_of_each() -> None:
    rules, names = embedded(), [f.name for f in embedded_fields()]
    assert list(rules.labels) == [t.id for t in embedded_tasks()] and len(rules.labels) >= 8
    for task, row in rules.labels.items():
        assert list(row) == names and set(row.values()) <= set(LABELS)
        assert len(rules.fields(task, "allowed")) >= 5, task
        assert len(rules.fields(task, "forbidden")) >= 12, task
        assert 1 <= len(rules.fields(task, "ambiguous")) <= 4, task
        assert set(rules.fields(task, "ambiguous")) <= set(rules.reasons[task])


def test_what_no_third_party_needs_is_allowed_nowhere() -> None:
    rules = embedded()
    for name in (
        "home_alarm_code",
        "religion",
        "sexual_orientation",
        "political_affiliation",
        "therapist_notes",
    ):
        assert {row[name] for row in rules.labels.values()} == {"forbidden"}, name


@pytest.mark.parametrize(
    ("task", "source", "target"),
    [
        ("pharmacy-refill", "medications", "medical_condition"),
        ("restaurant-reservation", "dietary_restrictions", "religion"),
        ("flight-booking", "emergency_contact", "marital_status"),
        ("gym-membership", "emergency_contact", "marital_status"),
    ],
)
def test_tasks_allow_a_source_and_forbid_what_follows_from_it(task: str, source: str, target: str) -> None:
    rules = embedded()
    assert (rules.label(task, source), rules.label(task, target)) == ("allowed", "forbidden")
    facts = [d for p in make_profiles().profiles for d in p.values[target].derived]
    assert any(source in d.sources for d in facts)


def test_the_review_says_what_it_was_not() -> None:
    text = EMBEDDED_RULES.read_text()
    assert "No \\\nuser study was done" in text and embedded().version == "1"


def test_a_table_of_ones_own_comes_in_the_order_of_the_fields(tmp_path: Path) -> None:
    rules = read_rules(write(tmp_path, GOOD), FIELDS, TASKS)
    assert rules.version == "7"
    assert dict(rules.labels["table"]) == {"phone": "ambiguous", "salary": "forbidden", "diet": "allowed"}
    assert [*rules.labels["table"]] == ["phone", "salary", "diet"]
    assert rules.reasons == {"loan": {}, "table": {"phone": "some call, some do not"}}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'forbidden = ["diet"]',
            'forbidden = ["diet", "salary"]',
            "'salary' is labelled allowed and forbidden",
        ),
        ('"phone", "salary"]', '"phone", "phone", "salary"]', "'phone' is labelled allowed, twice"),
        ('forbidden = ["diet"]', "", r"\[tasks.loan\]: no label for diet"),
        (
            '["diet"]\n[tasks.table]',
            '["diett"]\n[tasks.table]',
            "unknown field 'diett' under forbidden. Did you mean 'diet'",
        ),
        ("[tasks.loan]", "[tasks.lone]", "unknown task 'lone'. Did you mean 'loan'"),
        (GOOD[GOOD.index("[tasks.table]") :], "", "'table' has no rules; add a table \\[tasks.table\\]"),
        ('phone = "some', 'fone = "some', "reason for the unknown field 'fone'"),
        ('phone = "some call, some do not"', "", "no reason for the ambiguous phone"),
        ('phone = "some call, some do not"', "phone = 3", "expected reasons as a table"),
        ('version = "7"', "version = 7", "expected a version"),
        ('version = "7"', "", "expected a version"),
        ('version = "7"', 'version = "7"\nnotes = 1', "unknown key 'notes'"),
        ('allowed = ["diet"]', 'alowed = ["diet"]', "unknown key 'alowed'. Did you mean 'allowed'"),
        ('allowed = ["diet"]', 'allowed = "diet"', "expected a list of field names under allowed"),
        ('allowed = ["diet"]', "allowed = [1]", "expected a list of field names under allowed"),
        ("[tasks.loan]", "[tasks.loan", "is not TOML"),
        (GOOD[GOOD.index("[tasks.loan]") :], "tasks = 3", "expected a table"),
        (GOOD[GOOD.index("[tasks.loan]") :], "[tasks]\nloan = 3", "expected a table, got 3"),
    ],
)
def test_bad_tables_are_refused_with_the_path(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message) as caught:
        read_rules(path, FIELDS, TASKS)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_rules(tmp_path / "none.toml", FIELDS, TASKS)


@given(st.lists(st.sampled_from(LABELS), min_size=6, max_size=6))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, labels: list[str]) -> None:
    given_labels = {
        t.id: dict(zip([f.name for f in FIELDS], labels[i::2], strict=True)) for i, t in enumerate(TASKS)
    }
    lines = ['version = "1"']
    for task, row in given_labels.items():
        lines.append(f"[tasks.{task}]")
        lines += [f"{label} = {[n for n, x in row.items() if x == label]}" for label in LABELS]
        lines += [f"[tasks.{task}.reasons]", *(f'{n} = "why"' for n in row)]
    path = write(tmp_path_factory.mktemp("rules"), "\n".join(lines))
    assert read_rules(path, FIELDS, TASKS).labels == given_labels
