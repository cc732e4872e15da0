"""What a search keeps of what it was told."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from redteam.llm.search.losses import Loss
from redteam.llm.search.search import Rules, Search
from redteam.llm.search.state import Entry, State


def keeping(size: int) -> Search:
    return Search(None, Rules(max_queries=100, buffer=size), None, None, None, None, "t")  # type: ignore[arg-type]


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 25)), min_size=1, max_size=30), st.integers(1, 6)
)
def test_the_buffer_keeps_the_best_and_never_a_lower_bound(steps, size):
    state = State(np.random.default_rng(0))
    search = keeping(size)
    for serial, (value, token) in enumerate(steps):
        search._admit(state, Entry(0, float(value), serial, (token,), Loss(float(value), "exact", False)))
    kept = sorted(e.value for e in state.buffer)
    assert kept == sorted(float(v) for v, _ in steps)[:size]


def test_a_floor_never_stands_before_a_loss(ctx):
    search = keeping(1)
    state = State(np.random.default_rng(0))
    search._admit(state, Entry(0, 12.0, 0, (1,), Loss(12.0, "exact", False)))
    search._admit(state, Entry(1, 9.0, 1, (2,), Loss(9.0, "floor", False)))
    assert state.buffer.min().ids == (1,)
