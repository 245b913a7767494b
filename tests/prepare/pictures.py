"""Small real images for the tests of prepare."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def picture(number: int, form: str = "JPEG", *, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> bytes:
    """An encoded image that no other number gives."""
    noise = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, form)
    return file.getvalue()
