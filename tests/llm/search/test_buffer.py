from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redteam.llm.search.buffer import Buffer


@given(st.lists(st.tuples(st.sampled_from(["push", "max"]), st.integers(-20, 20)), max_size=200))
def test_any_sequence_of_operations_agrees_with_a_sorted_list(operations):
    buffer, plain = Buffer(), []
    for what, value in operations:
        if what == "push":
            buffer.push(value)
            plain = sorted([*plain, value])
        elif plain:
            assert (buffer.min(), buffer.max()) == (plain[0], plain[-1])
            assert buffer.pop_max() == plain.pop()
        assert list(buffer) == plain and len(buffer) == len(plain)
    assert list(Buffer(reversed(plain))) == plain


def test_an_empty_buffer_has_no_ends():
    for ask in ("min", "max", "pop_max"):
        with pytest.raises(IndexError):
            getattr(Buffer(), ask)()
