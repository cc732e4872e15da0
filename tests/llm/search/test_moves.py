"""Strings a search may draw: they survive decoding and encoding, also at the boundary to the request."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from redteam.llm.search import moves
from tests.llm.toy import ToyModel


class Merging(ToyModel):
    """Reads `ab` as one token, so that ids with an `a` before a `b` cannot be sent."""

    def tokenize(self, text):
        out = []
        for char in text:
            if out and char == "b" and out[-1] == ord("a"):
                out[-1] = 200
            else:
                out.append(ord(char))
        return out

    def detokenize(self, ids):
        return "".join("ab" if i == 200 else chr(i) for i in ids)


@given(st.integers(0, 1000))
def test_only_strings_that_survive_decoding_and_encoding_are_drawn(seed):
    model, rng = Merging(), np.random.default_rng(seed)
    start = moves.random_string(model, "", 8, rng)
    drawn = [next(moves.neighbours(model, "", start, rng)) for _ in range(20)]
    for place, ids in drawn:
        assert tuple(model.tokenize(model.detokenize(ids))) == ids
        assert sum(a != b for a, b in zip(ids, start, strict=True)) == 1 and ids[place] != start[place]


def test_the_boundary_to_the_request_is_checked_too():
    model = Merging()
    assert moves.sendable(model, "", (98, 99)) == "bc"
    assert moves.sendable(model, "xa", (98, 99)) is None  # read as x, ab, c


def test_repeated_target_is_cut_on_the_left():
    model = ToyModel()
    assert model.detokenize(moves.repeated(model, "", tuple(map(ord, "salt")), 10)) == "ltsaltsalt"
    assert model.detokenize(moves.repeated(model, "", tuple(map(ord, "salt")), 3)) == "alt"
