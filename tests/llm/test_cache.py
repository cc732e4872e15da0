"""The cache of answers: what goes in comes out, unless it is damaged or asked for differently."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redteam.core.errors import StorageError
from redteam.core.hashing import canonical_json
from redteam.llm.cache import Cache, cache_key

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
REQUEST = {
    "kind": "generate", "prompt": "p", "template": "raw",
    "sampling": {"temperature": 1.0, "seed": 0, "index": 0}, "k": 0, "bias": {}, "target": None,
}  # fmt: skip


@given(PLAIN)
def test_any_plain_value_comes_back_as_it_was(value):
    cache = Cache()
    cache.put("k", value)
    assert canonical_json(cache.get("k")) == canonical_json(value)
    assert cache.get("other") is None


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "score"}, {"prompt": "q"}, {"template": "chat"}, {"k": 1}, {"bias": {"5": 1.0}}, {"target": "t"},
        {"sampling": {**REQUEST["sampling"], "index": 1}}, {"sampling": {**REQUEST["sampling"], "seed": 1}},
    ],
    ids=str,
)  # fmt: skip
def test_whatever_may_change_the_answer_changes_the_key(change):
    assert cache_key({"model": "m"}, {**REQUEST, **change}) != cache_key({"model": "m"}, REQUEST)
    assert cache_key({"model": "n"}, REQUEST) != cache_key({"model": "m"}, REQUEST)
    assert cache_key({"model": "m"}, dict(reversed(REQUEST.items()))) == cache_key({"model": "m"}, REQUEST)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE answers SET answer = 'garbage' WHERE key = 'a'",
        "UPDATE answers SET answer = CAST(x'ff00fe' AS TEXT) WHERE key = 'a'",
        "UPDATE answers SET answer = x'00' WHERE key = 'a'",
        "UPDATE answers SET digest = '' WHERE key = 'a'",
        "UPDATE answers SET answer = (SELECT answer FROM answers WHERE key = 'b'), "
        "digest = (SELECT digest FROM answers WHERE key = 'b') WHERE key = 'a'",
    ],
)
def test_a_damaged_row_is_a_miss_and_harms_no_other(tmp_path, damage):
    path = tmp_path / "cache.db"
    cache = Cache(path)
    cache.put("a", {"text": "one"})
    cache.put("b", {"text": "two"})
    cache.close()
    with sqlite3.connect(path) as db:
        db.execute(damage)
    assert cache.get("a") is None
    assert cache.get("b") == {"text": "two"}
    cache.put("a", {"text": "again"})
    assert cache.get("a") == {"text": "again"}


def test_a_file_that_is_no_cache_is_an_error_that_says_what_to_do(tmp_path):
    path = tmp_path / "cache.db"
    path.write_bytes(b"no database at all, but long enough to be read as one" * 20)
    with pytest.raises(StorageError, match="delete it and pay again"):
        Cache(path).get("a")


def test_several_processes_write_one_file(tmp_path):
    path = tmp_path / "new" / "cache.db"
    code = (
        "import sys; from pathlib import Path; from redteam.llm.cache import Cache\n"
        "cache = Cache(Path(sys.argv[1]))\n"
        "for i in range(50): cache.put(f'{sys.argv[2]}-{i}', {'by': sys.argv[2], 'i': i}); cache.put('shared', i)"
    )
    root = Path(__file__).parents[2]
    running = [subprocess.Popen([sys.executable, "-c", code, str(path), str(n)], cwd=root) for n in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    cache = Cache(path)
    assert all(cache.get(f"{n}-{i}") == {"by": str(n), "i": i} for n in range(3) for i in range(50))
