"""Small images on which operations on pixels are compared."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

SIDE = 47


def photos() -> list[Image.Image]:
    """Photographs, noise, ramps, an even colour, stripes and a dark image of few levels."""
    noise = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    arrays = [
        load_sample_image("china.jpg")[100 : 100 + SIDE, 200 : 200 + SIDE],
        load_sample_image("flower.jpg")[::6, ::6][:SIDE, 20 : 20 + SIDE],
        noise.integers(0, 256, (SIDE, SIDE, 3)),
        np.stack([255 * x, 255 * y, 127 + 100 * np.sin(7 * x + 5 * y)], axis=-1),
        np.full((SIDE, SIDE, 3), (200, 30, 254)),
        np.repeat(255 * ((8 * x).astype(int) % 2)[..., None], 3, axis=2),
        noise.integers(0, 4, (SIDE, SIDE, 3)),
    ]
    return [Image.fromarray(np.ascontiguousarray(array).astype(np.uint8)) for array in arrays]


PHOTOS = photos()


def as_batch(images: list[Image.Image]) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.array(image) for image in images])).permute(0, 3, 1, 2).contiguous()


BATCH = as_batch(PHOTOS)
