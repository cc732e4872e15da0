"""Model minimisers: JSON or a bounded repair, and then an outcome of its own."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redteam.llm.language import Sampling
from redteam.llm.messages import Said
from redteam.threats.agents.minimisers import ModelMinimiser, listed, prompt
from tests.threats.agents.toys import Recorder, dialogue, world

WORDS = {f.name: f.words for f in world().fields}


def minimised(*answers: str | Said, repairs: int = 2):
    """What comes of a model that gives these answers in turn, and the model."""
    left = list(answers)
    model = Recorder(lambda _: left.pop(0))
    d = dialogue("x")
    (found,) = ModelMinimiser(model, Sampling(), WORDS, repairs=repairs).minimise([(d.context, d.data)])
    return found, model


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('["medicine"]', ["medicine"]),
        ('Sure:\n```json\n["medicine", "email address"]\n```\nDone.', ["medicine", "email address"]),
        ('{"fields": ["medicine"]}', ["medicine"]),
        ("[]", []),
        ("see [1], [2] and [3]", None),
        ('[1, 2] then ["medicine"]', ["medicine"]),
        ('["medicine", "email', None),
        ("medicine, email", None),
        ("", None),
        ("[" * 50_000, None),
        ('[["medicine"]]', ["medicine"]),
        ('["medicine"] and once more ["medicine"]', ["medicine"]),
        ('{"not needed": ["medical condition"], "needed": ["medicine"]}', None),
        ('Do not share ["medical condition"]; share ["medicine"].', None),
    ],
)
def test_names_in_an_answer(text, names):
    assert listed(text) == names


@given(st.lists(st.text(max_size=20), max_size=6), st.text(alphabet="abc .:\n{}", max_size=40))
def test_a_list_is_found_behind_any_words_without_brackets(names, before):
    assert listed(before + json.dumps(names)) == names


@given(st.text(max_size=300))
def test_no_text_breaks_the_parser(text):
    found = listed(text)
    assert found is None or all(isinstance(n, str) for n in found)


def test_names_are_matched_as_people_write_them_and_unknown_ones_let_nothing_through():
    found, _ = minimised('["Medicine ", "EMAIL-ADDRESS", "shoe size"]')
    assert (found.fields, found.outcome, found.attempts) == (("email", "medicine"), "ok", 1)


@pytest.mark.parametrize("answer", ['["name one", "name two"]', '["everything"]', '["medicine (needed)"]'])
def test_a_list_of_nothing_that_the_user_has_is_no_answer(answer):
    found, model = minimised(answer, answer, answer)
    assert (found.outcome, found.fields, len(model.asked)) == ("malformed", (), 3)


def test_asked_for_each_field_it_answers_yes_or_no_and_what_is_neither_is_no():
    answers = {"email": "Yes, it is.", "medicine": "yes", "medical": "No.", "criminal": "Perhaps"}
    model = Recorder(lambda m: answers[m[1].content.split("Is the user's ")[1].split()[0]])
    d = dialogue("x")
    minimiser = ModelMinimiser(model, Sampling(), WORDS, each=True)
    (found,) = minimiser.minimise([(d.context, d.data)])
    assert (found.fields, found.outcome, len(model.asked)) == (("email", "medicine"), "ok", 4)
    silent = ModelMinimiser(Recorder(lambda m: "Hm"), Sampling(), WORDS, each=True)
    (silent,) = silent.minimise([(d.context, d.data)])
    assert (silent.fields, silent.outcome) == ((), "malformed")


def test_everything_in_the_prompt_but_the_data_is_in_the_fingerprint():
    model = Recorder(lambda m: "[]")
    base = ModelMinimiser(model, Sampling(), WORDS).fingerprint()
    others = [
        ModelMinimiser(model, Sampling(), {**WORDS, "medicine": "drugs"}),
        ModelMinimiser(model, Sampling(temperature=1.0), WORDS),
        ModelMinimiser(model, Sampling(), WORDS, values=False),
        ModelMinimiser(model, Sampling(), WORDS, each=True),
        ModelMinimiser(model, Sampling(), WORDS, repairs=1),
    ]
    assert all(other.fingerprint() != base for other in others)


def test_an_answer_that_is_no_list_is_asked_again_and_counts_as_repaired():
    found, model = minimised("The medicine.", '["medicine"]')
    assert (found.fields, found.outcome, found.attempts) == (("medicine",), "repaired", 2)
    assert [m.role for m in model.asked[1]] == ["system", "user", "assistant", "user"]


def test_after_the_repairs_nothing_passes_and_the_outcome_is_malformed():
    found, model = minimised("no", "no", "no")
    assert (found.fields, found.outcome, found.attempts, found.raw) == ((), "malformed", 3, "no")
    assert len(model.asked) == 3


def test_a_model_that_answers_nothing_is_malformed_and_one_that_fails_is_an_error():
    assert minimised("", "", "")[0].outcome == "malformed"
    found, _ = minimised(Said(text="", finish="error", message="gone"))
    assert (found.fields, found.outcome, found.raw) == ((), "error", "gone")


def test_one_bad_answer_does_not_ask_the_others_again():
    model = Recorder(lambda c: '["medicine"]' if "Zorvane1" in c[1].content else "no")
    needs = [(d.context, d.data) for d in (dialogue("x"), dialogue("x", profile="p0"))]
    first, second = ModelMinimiser(model, Sampling(), WORDS, repairs=1).minimise(needs)
    assert (first.outcome, second.outcome, len(model.asked)) == ("ok", "malformed", 3)


def test_it_can_be_kept_from_the_values():
    d = dialogue("x")
    with_values, without = (prompt((d.context, d.data), WORDS, values=v)[1].content for v in (True, False))
    assert "Zorvane1" in with_values and "Zorvane1" not in without and "- medicine" in without
