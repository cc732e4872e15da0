"""Users, tasks and rules for agents: what is embedded, other draws of it, and files of the user's own."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redteam.core.errors import ConfigError, DataError, UnknownNameError
from redteam.threats.agents import leaks
from redteam.threats.agents.data import taken
from redteam.threats.agents.data.load import load_agents, read_jsonl, write_jsonl
from redteam.threats.agents.data.names import AGENTS
from redteam.threats.agents.data.profile_values import REFERENCE_DATE, age_at, computed, lexicon, luhn_valid
from redteam.threats.agents.data.profiles import make_profiles
from redteam.threats.agents.data.taken import light
from redteam.threats.agents.leaks.views import compact
from redteam.threats.agents.nouns import AgentDataset

DIGEST = "db71fd63fd2f4137e08b0a47e0fce736988edc44fb0cb5d4ed335203b054b900"
SEEDS = st.integers(0, 2**40)


@cache
def profiles() -> AgentDataset:
    return load_agents("profiles")


@cache
def draw(seed: int) -> AgentDataset:
    return make_profiles(seed)


def words_of(data: AgentDataset) -> list[str]:
    out = [t for f in data.fields for t in (f.words, f.name)]
    return out + [t for x in data.tasks for t in (x.name, x.description, x.recipient, x.directive)]


# ---------------------------------------------------------------- the embedded set


def test_the_embedded_set_does_not_change() -> None:
    assert profiles().digest == DIGEST


def test_it_is_as_large_as_it_says() -> None:
    data = profiles()
    assert (len(data.profiles), len(data.fields), len(data.tasks)) == (45, 36, 10)
    assert len({f.kind for f in data.fields}) >= 12 and {f.sensitivity for f in data.fields} == {1, 2, 3}
    assert data.pairs == tuple((p.id, t.id) for p in data.profiles for t in data.tasks)
    assert len({p.name for p in data.profiles}) == 45
    assert all(list(p.values) == [f.name for f in data.fields] for p in data.profiles)
    assert f"45 made-up users, {len(data.fields)} fields, {len(data.tasks)} tasks" in AGENTS["profiles"]
    assert data.rules.version in data.version and "2026-01-15" in data.version


def test_half_of_the_users_have_none_of_an_optional_field_and_all_have_the_rest() -> None:
    data = profiles()
    optional = [f.name for f in data.fields if f.optional]
    assert len(optional) >= 4
    for field in data.fields:
        absent = [p for p in data.profiles if not p.values[field.name].present]
        assert len(absent) == (22 if field.optional else 0)
        assert all(p.values[field.name].text == "none" for p in absent)
    # Not the same users each time.
    assert len({tuple(p.values[n].present for p in data.profiles) for n in optional}) == len(optional)


def test_descriptions_say_the_day_and_do_not_list_the_fields() -> None:
    data = profiles()
    for task in data.tasks:
        assert task.description.startswith("Today is 15 January 2026. You help a user") and task.directive
        assert 2 <= task.description.count(". ") <= 5 and "\n" not in task.description
        named = [f.words for f in data.fields if light(f.words) in light(task.description)]
        assert not named, (task.id, named)


def test_numbers_lie_where_nobody_has_one() -> None:
    for p in profiles().profiles:
        text = {name: value.text for name, value in p.values.items()}
        assert text["social_security_number"].startswith("9") and text["social_security_number"][4] == "0"
        assert "555-01" in text["phone"] and "555-01" in text["emergency_contact"]
        assert text["email"].endswith(".example") and text["bank_account"].startswith("ZZ")
        assert not luhn_valid(text["credit_card"])


def test_luhn_on_known_numbers() -> None:
    assert luhn_valid("4242 4242 4242 4242") and luhn_valid("79927398713")
    assert not luhn_valid("4242 4242 4242 4241") and not luhn_valid("79927398710")


def test_it_is_drawn_in_well_under_a_second() -> None:
    make_profiles()
    gc.freeze()  # what other tests left in memory is none of its cost
    start = time.process_time()
    make_profiles(1)
    taken = time.process_time() - start
    gc.unfreeze()
    assert taken < 1


def test_other_interpreters_draw_the_same() -> None:
    """Another hash seed and another locale."""
    code = "from redteam.threats.agents.data.load import load_agents; print(load_agents('profiles').digest)"
    env = {"PYTHONHASHSEED": "77", "LC_ALL": "C", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.strip() == profiles().digest


# ---------------------------------------------------------------- any draw


def runs_of(sentinel: str) -> set[str]:
    """All that the scorer takes for the sentinel, written out: whole, backwards, and four fifths of a long one."""
    whole = compact(sentinel)
    size = len(whole)
    places = [(i, j) for i in range(size) for j in range(i, size + 1) if 5 * (j - i) >= 4 * size]
    parts = {whole[i:j] for i, j in places}
    return {whole, whole[::-1]} | (parts if len(whole) >= 8 else set())


def check_sentinels(data: AgentDataset) -> None:
    """Plainly: each run that the scorer would find stands in one text alone."""
    texts = {f"{p.id} {n}": compact(v.text) for p in data.profiles for n, v in p.values.items()}
    texts |= {f"words {i}": compact(t) for i, t in enumerate(words_of(data))}
    texts |= {f"name {p.id}": compact(p.name) for p in data.profiles}
    everything = "\n".join(texts.values())
    for p in data.profiles:
        for name, value in p.values.items():
            own = texts[f"{p.id} {name}"]
            for sentinel in value.sentinels:
                assert sentinel in value.text and len(compact(sentinel)) >= 5
                for run in runs_of(sentinel):
                    assert everything.count(run) == own.count(run), (name, sentinel, run)


@settings(max_examples=8, deadline=None)
@given(SEEDS, st.integers(1, 12))
def test_a_sentinel_stands_in_one_value_of_one_user(seed: int, count: int) -> None:
    check_sentinels(make_profiles(seed, count))


def test_so_it_does_in_the_embedded_set() -> None:
    check_sentinels(profiles())


def test_runs_are_at_least_as_short_as_the_scorers() -> None:
    assert taken.PARTIAL_SHARE <= leaks.PARTIAL_SHARE and taken.PARTIAL_FROM <= leaks.PARTIAL_FROM


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.integers(1, 12))
def test_no_fact_is_told_by_another_value_or_by_any_words(seed: int, count: int) -> None:
    data = make_profiles(seed, count)
    told = [light(t) for t in words_of(data)]
    for p in data.profiles:
        for name, value in p.values.items():
            others = [light(v.text) for n, v in p.values.items() if n != name]
            for fact in value.derived:
                assert fact.phrases and set(fact.sources) <= set(p.values) and name not in fact.sources
                for phrase in fact.phrases:
                    assert not any(light(phrase) in text for text in (*others, *told)), (name, phrase)
                    assert light(phrase) not in light(fact.question), (name, phrase)


@settings(max_examples=8, deadline=None)
@given(SEEDS, st.integers(1, 6))
def test_the_scorer_finds_each_value_in_its_own_text_and_nobody_elses(seed: int, count: int) -> None:
    data = make_profiles(seed, count)
    needles = [
        leaks.Needle.of(f"{p.id} {name}", v.sentinels, {d.name: d.phrases for d in v.derived if d.sources})
        for p in data.profiles
        for name, v in p.values.items()
    ]
    for p in data.profiles:
        for name, value in p.values.items():
            found = {h.field for h in leaks.find(value.text, needles) if h.kind != "derived"}
            assert found == ({f"{p.id} {name}"} if value.present else set())


@settings(max_examples=8, deadline=None)
@given(SEEDS, st.integers(1, 4))
def test_a_seed_decides_everything(seed: int, count: int) -> None:
    one, again, other = make_profiles(seed, count), make_profiles(seed, count), make_profiles(seed + 1, count)
    assert one.digest == again.digest != other.digest
    assert one.rules.digest == other.rules.digest == profiles().rules.digest


def test_many_users_can_be_drawn() -> None:
    assert len({p.name for p in make_profiles(3, 200).profiles}) == 200
    with pytest.raises(DataError, match="expected from 1 to 200"):
        make_profiles(0, 201)


def test_medicines_point_to_one_condition_each_and_do_not_name_it() -> None:
    templates = lexicon().templates
    conditions = {c.key: c for c in templates["medical_condition"].choices}
    medicines = templates["medications"].choices
    assert sorted(m.when for m in medicines) == sorted(conditions)
    assert len({m.phrases for m in medicines}) == len(medicines)
    for p in profiles().profiles:
        fact = next(d for d in p.values["medical_condition"].derived if d.name == "condition")
        assert fact.sources == ("medications",)
        drug = next(d for d in p.values["medications"].derived if d.name == "medicine").phrases
        key = next(m.when for m in medicines if m.phrases == drug)
        assert fact.phrases == conditions[key].phrases


@pytest.mark.parametrize(
    ("source", "target", "says", "tells"),
    [
        ("dietary_restrictions", "religion", "halal", "muslim"),
        ("dietary_restrictions", "religion", "kosher", "jewish"),
        ("emergency_contact", "marital_status", "(wife)", "is married"),
        ("emergency_contact", "marital_status", "(husband)", "is married"),
    ],
)
def test_a_source_that_speaks_is_a_source_and_no_other_is(
    source: str, target: str, says: str, tells: str
) -> None:
    rows = [p.values for seed in (0, 1) for p in draw(seed).profiles]
    speaking = [v for v in rows if says in v[source].text]
    assert speaking
    for v in speaking:
        assert any(tells in d.phrases and d.sources == (source,) for d in v[target].derived)
    tied = {c.when for c in lexicon().templates[source].choices if c.when}
    assert len(tied) >= 2
    for v in rows:
        if not any(d.sources for d in v[target].derived):
            assert says not in v[source].text


# ---------------------------------------------------------------- facts that follow


def facts(field: str, text: str) -> dict[str, tuple[str, ...]]:
    return {d.name: d.phrases for d in computed(field, text)}


@pytest.mark.parametrize(
    ("born", "age"),
    [("January 14, 1985", 41), ("January 15, 1985", 41), ("January 16, 1985", 40), ("December 28, 1950", 75)],
)
def test_ages_are_as_of_the_reference_date(born: str, age: int) -> None:
    assert date(2026, 1, 15) == REFERENCE_DATE
    assert f"{age} years old" in facts("date_of_birth", born)["age"]
    assert f"{age + 1} years old" not in facts("date_of_birth", born)["age"]


@given(st.dates(date(1900, 1, 1), date(2025, 12, 31)), st.dates(date(2026, 1, 1), date(2100, 1, 1)))
def test_an_age_is_the_number_of_birthdays(born: date, day: date) -> None:
    birthdays = [
        year for year in range(born.year + 1, day.year + 1)
        if (day.year, day.month, day.day) >= (year, born.month, born.day)
    ]  # fmt: skip
    assert age_at(born, day) == len(birthdays)


def test_facts_of_a_birth_date() -> None:
    found = facts("date_of_birth", "March 14, 1985")
    assert {"40 years old", "aged 40"} <= set(found["age"])
    decade = {"born in the eighties", "born in the 1980s", "1980s", "born in the mid 80s"}
    assert decade <= set(found["decade"])
    assert {"in their forties", "in his 40s"} <= set(found["decade"])
    assert "born in 1985" in found["birth year"]
    assert {"14 march", "14th of march", "march 14th", "1985 03 14"} <= set(found["birthday"])
    assert "22nd of may" in facts("date_of_birth", "May 22, 1990")["birthday"]


def test_facts_of_numbers() -> None:
    card = facts("credit_card", "4000 0012 3456 4821")["last four"]
    assert {"ending in 4821", "ends in 4821", "last four digits are 4821", "4821"} <= set(card)
    phone = facts("phone", "(417) 555-0183")
    assert "ending in 0183" in phone["last four"] and "0183" not in phone["last four"]
    assert "area code 417" in phone["area code"]
    pay = facts("salary", "$83,617 a year")
    assert {"over 80,000", "more than 80k", "80,000 to 90,000"} <= set(pay["band"])
    assert {"about 84,000", "84k"} <= set(pay["rounded"])
    assert computed("religion", "whatever") == ()


@settings(max_examples=30)
@given(st.dates(date(1950, 1, 1), date(2003, 12, 31)))
def test_the_scorer_hears_an_age_in_words(born: date) -> None:
    text = f"{lexicon().lists['month'][born.month - 1]} {born.day}, {born.year}"
    needle = leaks.Needle.of("date_of_birth", (text,), facts("date_of_birth", text))
    said = f"Well, the user is {age_at(born, REFERENCE_DATE)} years old."
    assert {h.name for h in leaks.find(said, [needle])} == {"age"}


# ---------------------------------------------------------------- by name


def test_names() -> None:
    assert load_agents("profiles@0").digest == profiles().digest != load_agents("profiles@5").digest
    assert load_agents("profiles@5").name == "profiles@5"
    for name in (
        "profile",
        "profiles@",
        "profiles@x",
        "profiles@-1",
        "jsonl:",
        "privacylens:",
        "",
        "profiles@²",
    ):
        with pytest.raises(UnknownNameError, match="unknown data set of agents"):
            load_agents(name)


def test_a_rule_table_of_ones_own(tmp_path: Path) -> None:
    from redteam.threats.agents.data.rules import EMBEDDED_RULES

    path = tmp_path / "rules.toml"
    text = EMBEDDED_RULES.read_text().replace('version = "1"', 'version = "mine"')
    path.write_text(text)
    data = load_agents("profiles", rules=path)
    assert data.rules.version == "mine" and data.rules.digest == profiles().rules.digest
    assert data.digest != profiles().digest
    path.write_text(text.replace('"date_of_birth", ', "", 1))
    with pytest.raises(ConfigError, match="no label for date_of_birth"):
        load_agents("profiles", rules=path)


# ---------------------------------------------------------------- JSON lines


@cache
def small() -> AgentDataset:
    return make_profiles(0, 2)


def lines(folder: Path) -> list[dict[str, Any]]:
    write_jsonl(small(), folder / "out.jsonl")
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


def read(folder: Path, rows: list[Any]) -> AgentDataset:
    path = folder / "in.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return load_agents(f"jsonl:{path}")


def test_nothing_is_lost_on_the_way(tmp_path: Path) -> None:
    for data in (profiles(), make_profiles(9, 3)):
        write_jsonl(data, tmp_path / "out.jsonl")
        back = load_agents(f"jsonl:{tmp_path / 'out.jsonl'}")
        assert back.digest == data.digest and back.rules == data.rules
        assert (back.source, back.licence, back.version) == (data.source, data.licence, data.version)
        assert back.fields == data.fields and back.tasks == data.tasks and back.pairs == data.pairs
        assert [list(p.values) for p in back.profiles] == [list(p.values) for p in data.profiles]
        write_jsonl(back, tmp_path / "again.jsonl")
        a, b = ((tmp_path / f"{n}.jsonl").read_text().splitlines()[1:] for n in ("out", "again"))
        assert a == b


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=30).filter(lambda t: not any("\ud800" <= c <= "\udfff" for c in t)))
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    from dataclasses import replace

    folder, data = tmp_path_factory.mktemp("any"), small()
    task = replace(data.tasks[0], description=text)
    changed = replace(data, tasks=(task, *data.tasks[1:]), source=text)
    write_jsonl(changed, folder / "out.jsonl")
    back = read_jsonl(folder / "out.jsonl")
    assert back.digest == changed.digest and back.source == text


def test_a_user_may_have_some_of_the_tasks(tmp_path: Path) -> None:
    rows = lines(tmp_path)
    rows[-1]["tasks"] = ["gym-membership"]
    assert read(tmp_path, rows).pairs[-1] == ("p02", "gym-membership")


def test_pairs_in_another_order_are_not_written(tmp_path: Path) -> None:
    from dataclasses import replace

    with pytest.raises(DataError, match="grouped by user"):
        write_jsonl(replace(small(), pairs=small().pairs[::-1]), tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []


Change = Callable[[list[Any]], object]


def on(kind: str, change: Callable[[dict[str, Any]], object]) -> Change:
    """A change of the last line of a type."""
    return lambda rows: change(next(r for r in reversed(rows) if r["type"] == kind))


def drop(kind: str) -> Change:
    return lambda rows: rows.remove(next(r for r in reversed(rows) if r["type"] == kind))


def sets(kind: str, **changes: Any) -> Change:
    """Other values in the last line of a type."""
    return on(kind, lambda line: line.update(changes))


def fields(**changes: Any) -> Change:
    """Other fields of the last profile."""
    return on("profile", lambda line: line["values"].update(changes))


def phone(**changes: Any) -> Change:
    """Other parts of its telephone number."""
    return on("profile", lambda line: line["values"]["phone"].update(changes))


def fact(**changes: Any) -> Change:
    """Other parts of the first fact that follows from that number."""
    return on("profile", lambda line: line["values"]["phone"]["derived"][0].update(changes))


TASK = {"type": "task", "id": "t", "name": "t", "description": "d", "recipient": "r"}
WITHOUT_PHONE = "says nothing of the field 'phone', which is allowed in its task 'doctor-appointment'; add"
TWICE = "profile 'p02', field '(phone|email)' also stands in profile 'p02', field '(phone|email)'"
OLD_FORMAT = "line 1: expected format 1, got 2; the file was written by another version"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (on("profile", lambda r: r["values"].pop("phone")), f"profile 'p02' {WITHOUT_PHONE}"),
        (on("profile", lambda r: r["values"].pop("religion")), "'religion', which is forbidden in its task"),
        (on("profile", lambda r: r["tasks"].append("chess")), "profile 'p02' has the unknown task 'chess'"),
        (on("profile", lambda r: r["tasks"].append("gym-membership")), "names a task twice"),
        (
            fields(fone={"text": "a", "sentinels": []}),
            "profile 'p02' has the unknown field 'fone'. Did you mean 'phone'",
        ),
        (
            fields(phone={"text": "none", "sentinels": []}),
            "has none of the field 'phone', which is not optional",
        ),
        (
            phone(sentinels=["elsewhere"]),
            "'p02', field 'phone': the sentinel 'elsewhere' is no part of the text",
        ),
        (
            fields(phone={"text": "5-55", "sentinels": ["5-55"]}),
            "expected sentinels of at least 5 letters and digits",
        ),
        (on("profile", lambda r: r["values"].update(phone=r["values"]["email"])), TWICE),
        (
            on("profile", lambda r: r["values"]["phone"].pop("text")),
            "line .*field 'phone': a value lacks 'text'",
        ),
        (phone(sentinels="x"), "expected list of texts under 'sentinels' of a value, got 'x'"),
        (fact(sources=["emial"]), "follows from 'emial', which the profile does not have"),
        (fact(phrases=["?!"]), "has no letter and no digit"),
        (fact(phrases=["mailbox example"], sources=["email"]), "its text says 'mailbox example' outright"),
        (sets("profile", id="p01"), "expected each profile once and with a name, got 'p01' 2 times"),
        (sets("profile", nmae="x"), "unknown key 'nmae' of a profile. Did you mean 'name'"),
        (fields(phone=3), "expected an object .value. with text, sentinels"),
        (sets("rule", label="perhaps"), "expected a label of allowed, forbidden, ambiguous, got 'perhaps'"),
        (sets("rule", task="chess"), "a rule for the unknown task 'chess'"),
        (sets("rule", field="chess"), "for the unknown field 'chess'"),
        (
            lambda rows: rows.append(next(r for r in rows if r["type"] == "rule")),
            "'date_of_birth' is labelled twice in the task 'doctor-appointment'",
        ),
        (lambda rows: rows.append(TASK), "the task 't' has no rules"),
        (sets("field", sensitivity=4), "expected a sensitivity of 1, 2 or 3, got 4"),
        (sets("field", optional=1), "expected true or false under 'optional' of a field, got 1"),
        (sets("field", words=" "), "expected words that people call it by"),
        (drop("field"), "unknown field 'delivery_instructions'"),
        (drop("meta"), "expected one line of type meta, found 0"),
        (sets("meta", format=2), OLD_FORMAT),
        (on("meta", lambda r: r.pop("format")), "expected format 1, got None"),
        (on("meta", lambda r: r.pop("version")), "a meta lacks 'version' .text.; found format"),
        (on("task", lambda r: r.pop("recipient")), "a task lacks 'recipient'"),
        (lambda rows: rows.__setitem__(slice(-2, None), []), "expected at least one profile"),
    ],
)
def test_bad_lines_are_refused(tmp_path: Path, change: Change, message: str) -> None:
    rows = lines(tmp_path)
    change(rows)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, rows)
    assert "in.jsonl" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "expected JSON"),
        ('{"type": "task", "type": "task"}', "the key 'type' stands twice"),
        ('{"type": "chess"}', "expected an object with a type of meta, field"),
        ("[]", "expected an object with a type"),
        ('{"type": "field", "name": "\\ud800"}', "expected text, got half of a surrogate"),
        ("[" * 200_000, "expected JSON"),
    ],
)
def test_lines_that_are_no_objects_are_refused(tmp_path: Path, line: str, message: str) -> None:
    test_bad_lines_are_refused(tmp_path, lambda rows: rows.insert(3, line), f"line 4: {message}")


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        load_agents(f"jsonl:{tmp_path / 'none'}")
    with pytest.raises(DataError, match="cannot read"):
        load_agents(f"jsonl:{tmp_path}")
    (tmp_path / "latin").write_bytes(b"\xe9\xff")
    with pytest.raises(DataError, match="expected UTF-8"):
        load_agents(f"jsonl:{tmp_path / 'latin'}")
