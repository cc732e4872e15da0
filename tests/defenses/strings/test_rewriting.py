"""Paraphrase and retokenization: what they do to a text, and what they never do."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from defenses.strings import paraphrase, retokenization
from defenses.strings.paraphrase import INSTRUCTION, SYNONYMS, plain, reword
from defenses.strings.retokenization import boundaries, split
from redteam.llm.language import Sampling
from tests.conftest import context
from tests.defenses.strings.fakes import CONTROL, FakeModel, replace_module, rng

CTX = context()
TEXT = st.text(max_size=60)
PIECES = st.lists(st.text("abcé !", min_size=1, max_size=4), max_size=12)


class Pieces:
    """A tokenizer of given pieces."""

    def __init__(self, pieces: list[str]) -> None:
        self.pieces = pieces

    def tokenize(self, text: str) -> list[int]:
        return list(range(len(self.pieces)))

    def detokenize(self, ids) -> str:
        return "".join(self.pieces[i] for i in ids)


# ---------------------------------------------------------------- retokenization


def test_boundaries_within_words():
    known = Pieces(["un", "believ", "able", " big", " ", "big", "ger", "!", "\n"])
    text = "".join(known.pieces)
    assert boundaries(text, known.tokenize, known.detokenize) == [2, 8, 20, 23]
    assert boundaries("", Pieces([]).tokenize, Pieces([]).detokenize) == []
    assert boundaries("abc", Pieces(["ab", "c"]).tokenize, Pieces(["ab", "c"]).detokenize) == [2]


def test_boundaries_of_bytes_and_of_tokenizers_that_drop_spaces():
    whole = "aéb c"
    raw = whole.encode()
    ids = list(raw)
    decode = lambda ids: bytes(ids).decode(errors="replace")  # noqa: E731
    assert boundaries(whole, lambda text: ids, decode) == [1, 2]  # not within the é, not beside the space
    pieces = ["▁ab", "cd", "▁e"]
    drop = lambda ids: "".join(pieces[i] for i in ids).replace("▁", " ").lstrip()  # noqa: E731
    assert boundaries("abcd e", lambda text: [0, 1, 2], drop) == [2]
    lower = Pieces(["ab", "c"])  # gives other text back: no prefix is one of the prompt's
    assert boundaries("ABc", lower.tokenize, lower.detokenize) == []


@given(PIECES, st.floats(0, 1), st.integers(0, 50))
def test_splits_add_spaces_at_boundaries_and_nothing_else(pieces, rate, seed):
    known, text = Pieces(pieces), "".join(pieces)
    places = boundaries(text, known.tokenize, known.detokenize)
    ends = {len("".join(pieces[:i])) for i in range(1, len(pieces))}
    assert set(places) <= ends and places == sorted(set(places))
    assert all(not text[p - 1].isspace() and not text[p].isspace() for p in places)
    out = split(text, places, rate, rng(seed))
    assert out.replace(" ", "") == text.replace(" ", "")
    assert split(text, places, 0.0, rng(seed)) == text
    full = split(text, places, 1.0, rng(seed))
    assert len(full) == len(text) + len(places) and full.split() == [
        word for i, j in zip([0, *places], [*places, len(text)], strict=True) for word in text[i:j].split()
    ]


def test_a_text_of_control_tokens_is_an_error_and_stops_no_other():
    target = FakeModel()
    guard = retokenization.run(target, retokenization.Config(), CTX)
    bad, good = guard.generate(["a" + CONTROL, "a"], Sampling())
    assert (bad.finish, bad.message, good.text) == ("error", "a control token", "a")
    assert target.asked == ["a"]


def test_the_rate_is_the_share_of_boundaries_split():
    text = "a" * 4001
    n = len(split(text, list(range(1, 4001)), 0.2, rng())) - len(text)
    assert 700 < n < 900  # 800 expected, standard deviation 25


@given(TEXT)
def test_retokenization_at_rate_zero_is_the_identity(prompt):
    target = FakeModel()
    guard = retokenization.run(target, retokenization.Config(rate=0.0), CTX)
    assert guard.generate([prompt], Sampling()) == FakeModel().generate([prompt], Sampling())
    assert target.asked == [prompt]


def test_the_same_prompt_is_always_split_alike_and_scores_see_the_split_one():
    target = FakeModel()
    guard = retokenization.run(target, retokenization.Config(rate=0.5), CTX)
    again = retokenization.run(target, retokenization.Config(rate=0.5), CTX)
    prompts = ["unbelievable words", "other words"]
    sent = guard.admit(prompts)
    assert again.admit(prompts[::-1]) == sent[::-1] and sent[0] != prompts[0]
    guard.generate(prompts, Sampling(index=3))
    guard.score(prompts, "x")
    guard.next_token(prompts[0], [], k=1)
    assert target.asked == [*sent, *sent, sent[0]]
    # What its sender writes is read as written: a search may not be judged by what the defence makes of it.
    assert guard.encode(prompts[0]) == target.encode(prompts[0])


# ---------------------------------------------------------------- paraphrase by rules


def test_the_rules_in_closed_form():
    assert (
        plain("  Write\tTHE ﬁrst {{ word }} \\n Twice!\u200b(please) ")
        == "write the first word n twice! (please)"
    )
    assert plain("§±@#$%^&*") == ""
    assert reword("say big things", 0.0, rng()) == "say big things"
    assert reword("big", 1.0, rng()) in ("large", "great")
    assert reword("bigger biggest", 1.0, rng()) == "bigger biggest"
    assert reword("error, error", 1.0, rng()) == "mistake, mistake"


def test_the_table_is_symmetric_and_lower_case():
    assert len(SYNONYMS) > 100
    for word, others in SYNONYMS.items():
        assert word not in others and others and len(set(others)) == len(others)
        assert all(word in SYNONYMS[other] for other in others)
        assert word.isascii() and word.islower()


@given(TEXT)
def test_rules_leave_nothing_but_words_and_basic_punctuation(text):
    out = plain(text)
    assert all(c.isalnum() or c in ".,;:!?'\"()- " for c in out)
    assert "  " not in out and out == out.strip()
    ascii_part = plain(text.encode("ascii", "ignore").decode())
    assert plain(ascii_part) == ascii_part and not set(ascii_part) & set(string.ascii_uppercase)


@given(
    st.lists(st.sampled_from(["say", "the", "big", "story", "zebra", "quick"]), max_size=12), st.floats(0, 1)
)
def test_rewording_keeps_the_order_and_only_uses_the_table(words, rate):
    out = reword(" ".join(words), rate, rng()).split()
    assert len(out) == len(words)
    for before, after in zip(words, out, strict=True):
        assert after == before or after in SYNONYMS[before]


def test_a_rewriting_that_leaves_nothing_is_refused_without_a_query():
    target = FakeModel()
    guard = paraphrase.run(target, paraphrase.Config(), CTX)
    gone, empty, fine = guard.generate(["#@$ {}", "", "Sea?"], Sampling())
    assert gone.finish == "refused" and "left nothing" in gone.message
    assert (empty.text, fine.text) == ("", "sea?") and target.asked == ["", "sea?"]


def test_rules_are_the_same_for_the_same_prompt():
    prompt = "Tell a big story and show many small things, say the answer, repeat the word."
    runs = [paraphrase.run(FakeModel(), paraphrase.Config(), CTX).admit([prompt, "x"])[0] for _ in range(2)]
    other = paraphrase.run(FakeModel(), paraphrase.Config(), context(1))
    assert runs[0] == runs[1] != other.admit([prompt])[0]


# ---------------------------------------------------------------- paraphrase by a model


@pytest.fixture
def paraphraser(monkeypatch):
    told = INSTRUCTION.format(prompt="lost")
    model = FakeModel(
        name="writer", answer=lambda p: f"  [{p.split('-----')[1].strip()}] ", finishes={told: "timeout"}
    )
    opened = []

    def open_model(options, ctx, role):
        opened.append((options.model, options.template, role))
        return model

    replace_module(monkeypatch, "redteam.llm.opening", open_model=open_model)
    model.opened = opened
    return model


def test_a_model_rewrites_and_is_asked_once_for_each_prompt(paraphraser):
    target = FakeModel()
    guard = paraphrase.run(target, paraphrase.Config(model="gguf:smollm2"), CTX)
    assert [c.text for c in guard.generate(["one", "two", "one"], Sampling())] == ["[one]", "[two]", "[one]"]
    guard.score(["one"], "x")
    assert target.asked == ["[one]", "[two]", "[one]", "[one]"]
    assert paraphraser.asked == [INSTRUCTION.format(prompt=p) for p in ("one", "two")]
    assert paraphraser.opened == [("gguf:smollm2", "chat", "defense")]
    assert guard.fingerprint()["paraphraser"] == paraphraser.fingerprint()


def test_a_paraphraser_that_fails_means_no_answer(paraphraser):
    target = FakeModel()
    guard = paraphrase.run(target, paraphrase.Config(model="tiny:", template="raw"), CTX)
    (answer,) = guard.generate(["lost"], Sampling())
    assert (answer.finish, answer.text) == ("timeout", "") and "paraphraser gave no answer" in answer.message
    assert not target.asked and len(paraphraser.asked) == 1
    guard.generate(["lost"], Sampling())
    assert len(paraphraser.asked) == 2, "a failure is not remembered"


def test_braces_in_a_prompt_are_text(paraphraser):
    guard = paraphrase.run(FakeModel(), paraphrase.Config(model="tiny:"), CTX)
    assert guard.admit(["{prompt} {0} {"]) == ["[{prompt} {0} {]"]
