"""Decoding single images: colour modes and damage."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from redteam.core.errors import DataError
from redteam.data.decode import decode

from .make import encode, pixels


@pytest.mark.parametrize(
    ("mode", "shape"),
    [("L", (4, 5)), ("1", (4, 5)), ("LA", (4, 5)), ("RGB", (4, 5, 3)), ("RGBA", (4, 5, 3)), ("P", (4, 5, 3))],
)
def test_grey_stays_grey_and_the_rest_becomes_rgb(mode: str, shape: tuple[int, ...]) -> None:
    image = decode(encode(pixels(4, 5, 3), mode=mode), "x")
    assert image.shape == shape and image.dtype == np.uint8


def test_sixteen_bits_keep_the_upper_eight() -> None:
    values = np.array([[0, 255, 256, 65535]], np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    assert decode(buffer.getvalue(), "x").tolist() == [[0, 0, 1, 255]]


def test_float_pixels_are_refused() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.ones((2, 2), np.float32)).save(buffer, "TIFF")
    with pytest.raises(DataError, match="8 or 16 bits per channel in x, got Pillow mode F"):
        decode(buffer.getvalue(), "x")


def test_size_scales_the_shorter_side_and_crops_the_centre() -> None:
    wide = np.zeros((4, 12), np.uint8)
    wide[:, 4:8] = 200
    assert (decode(encode(wide), "x", size=4) == 200).all()
    assert decode(encode(wide), "x", size=2).shape == (2, 2)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]),
    st.integers(0, 10_000),
    st.integers(1, 255),
    st.booleans(),
)
def test_damage_gives_an_image_or_a_data_error(kind: str, position: int, mask: int, cut: bool) -> None:
    data = bytearray(encode(pixels(6, 7, 3), kind))
    position %= len(data)
    data[position] ^= mask
    if cut:
        del data[position:]
    try:
        assert decode(bytes(data), "x").dtype == np.uint8
    except DataError as error:
        assert " x" in str(error)
