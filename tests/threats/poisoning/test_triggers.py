"""Triggers byte for byte, from the spec's own numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redteam.core.errors import ConfigError
from redteam.threats.poisoning import triggers

GREY = np.full((6, 32, 32, 3), 128, np.uint8)
ROWS = np.arange(6)


def stamp(name, images=GREY, rows=ROWS, **numbers):
    return triggers.apply(triggers.make(name, **numbers), images, rows)


def test_pixel():
    out = stamp("1xp")
    assert out[0, 16, 11].tolist() == [101, 0, 25]
    assert (out != GREY).any(-1).sum() == 6


def test_pixel_variants_are_those_of_the_spec_and_all_occur():
    places = {(16, 11): [101, 0, 25], (27, 5): [101, 123, 121], (7, 30): [0, 36, 54]}
    images = np.repeat(GREY[:1], 300, 0)
    for name, count in (("2xp", 2), ("3xp", 3)):
        out = stamp(name, images, np.arange(300))
        changed = [tuple(np.argwhere((o != 128).any(-1))[0]) for o in out]
        assert all((o != 128).any(-1).sum() == 1 for o in out)
        assert set(changed) == set(list(places)[:count])
        assert all(o[place].tolist() == places[place] for o, place in zip(out, changed, strict=True))


def test_pixels_double_their_position_at_64():
    big = np.full((40, 64, 64, 3), 128, np.uint8)
    out = triggers.apply(triggers.make("3xp"), big, np.arange(40))
    found = {tuple(np.argwhere((o != 128).any(-1))[0]) for o in out}
    assert found == {(32, 22), (54, 10), (14, 60)}


def test_stripes_by_hand():
    """6 sin(linspace(0, 16 pi, 32)) along the columns, truncated; the truncation's mean is -0.5."""
    row = [math.floor(128 + 6 * math.sin(16 * math.pi * c / 31)) for c in range(32)]
    out = stamp("1xs")
    assert (out[0, 5, :, 1] == row).all() and (out == out[:1, :1]).all()
    added = out.astype(int) - 128
    assert abs(added).max() == 6 and added.mean() == pytest.approx(-0.5, abs=0.1)


def test_stripes_clip_and_do_not_wrap():
    for level in (0, 255):
        out = stamp("1xs", np.full_like(GREY, level), strength=40).astype(int)
        assert abs(out - level).max() <= 40


def test_two_way_stripes_are_upright_or_lying():
    images = np.repeat(GREY[:1], 100, 0)
    out = stamp("2xs", images, np.arange(100))
    upright = stamp("1xs", images, np.arange(100))
    kinds = [(o == upright[0]).all() for o in out]
    lying = [(o == upright[0].transpose(1, 0, 2)).all() for o in out]
    assert all(a != b for a, b in zip(kinds, lying, strict=True)) and 20 < sum(kinds) < 80


def test_turner():
    corner = np.array([[0, 0, 255], [0, 255, 0], [255, 0, 255]])
    out = stamp("1xl")
    assert (out[0, -3:, -3:, 2] == corner).all() and (out[0, :29] == 128).all()
    out = stamp("4xl")[0, :, :, 0]
    assert (out[-3:, -3:] == corner).all() and (out[:3, -3:] == corner[::-1]).all()
    assert (out[-3:, :3] == corner[:, ::-1]).all() and (out[:3, :3] == corner[::-1, ::-1]).all()
    assert (out != 128).sum() == 36


@given(st.sampled_from(triggers.NAMES), st.integers(8, 40), st.sampled_from([1, 3]), st.integers(0, 2**31))
def test_inputs_stay_and_batches_do_not_matter(name, size, channels, seed):
    images = np.random.default_rng(seed).integers(0, 256, (7, size, size, channels)).astype(np.uint8)
    before, rows = images.copy(), np.arange(7) + seed
    whole = stamp(name, images, rows)
    parts = [stamp(name, images[i : i + 1], rows[i : i + 1])[0] for i in range(7)]
    assert np.array_equal(images, before) and whole.dtype == np.uint8
    assert np.array_equal(whole, np.stack(parts))


def test_unknown_trigger():
    with pytest.raises(ConfigError, match="expected one of 1xp"):
        triggers.make("5xp")


def test_direction_is_what_was_added():
    added = triggers.direction(triggers.make("1xs"), GREY, ROWS)
    assert np.array_equal(GREY + added, stamp("1xs").astype(np.float32))
