from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redteam.llm.search.heap import MinMaxHeap


@given(st.lists(st.tuples(st.sampled_from(["push", "min", "max"]), st.integers(-20, 20)), max_size=200))
def test_any_sequence_of_operations_agrees_with_a_sorted_list(operations):
    heap, plain = MinMaxHeap(), []
    for what, value in operations:
        if what == "push":
            heap.push(value)
            plain = sorted([*plain, value])
        elif plain:
            assert (heap.min(), heap.max()) == (plain[0], plain[-1])
            assert (heap.pop_min() if what == "min" else heap.pop_max()) == plain.pop(
                0 if what == "min" else -1
            )
        assert sorted(heap) == plain and len(heap) == len(plain)


def test_an_empty_heap_has_no_ends():
    for ask in ("min", "max", "pop_min", "pop_max"):
        with pytest.raises(IndexError):
            getattr(MinMaxHeap(), ask)()
