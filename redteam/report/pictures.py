"""Images in a page: PNG data URIs, so that nothing is loaded. Pure."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image


def png_uri(image: np.ndarray) -> str:
    """A lossless PNG. image: (H, W, C) uint8 with 1 or 3 channels."""
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] in (1, 3), (
        image.dtype,
        image.shape,
    )
    out = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(out, format="PNG", optimize=False)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
