"""Photographs of retinas, brought to one size and contrast as Ben Graham did, who won the Kaggle competition of 2015.

TFDS stores them so in its configuration "btgraham-300", which VTAB takes: the eye scaled to a radius of 300
pixels, its local mean colour subtracted, and what lies beyond 90 % of the radius cut off. It uses OpenCV, and then a
JPEG of quality 72; this is the same arithmetic in NumPy and SciPy, without the JPEG.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mixer_lightning.data.decode import decode

if TYPE_CHECKING:
    from mixer_lightning.data.sources import Images, Indices, Pixels

RADIUS = 300  # of the eye, in pixels
KEPT = 0.9  # of the radius
GREY = 128


class FundusImages:
    """Encoded photographs, processed when they are read."""

    def __init__(self, photographs: Images) -> None:
        self.photographs = photographs

    def __len__(self) -> int:
        return len(self.photographs)

    def labels(self, indices: Indices) -> npt.NDArray[np.int64]:
        """Class indices [B]."""
        return self.photographs.labels(indices)

    def read(self, index: int) -> Pixels:
        """The processed photograph, 540 x 540 pixels or a little less."""
        encoded = self.photographs.read(index)
        return process(np.asarray(decode(encoded)) if isinstance(encoded, bytes) else encoded)

    def key(self, index: int) -> str:
        """The photograph's."""
        return self.photographs.key(index)

    def name(self, index: int) -> str:
        """The photograph's."""
        return self.photographs.name(index)


def process(photograph: Pixels) -> Pixels:
    """A photograph [H, W, 3] scaled, levelled and cut out."""
    eye = _scaled(photograph, RADIUS / _radius(photograph))
    return _cut_out(_levelled(eye), round(RADIUS * KEPT))


def _radius(photograph: Pixels) -> float:
    """Half the number of pixels in the middle row that are not nearly black."""
    brightness = photograph[len(photograph) // 2].sum(axis=1, dtype=np.int64)  # [W]
    radius = float((brightness > brightness.mean() / 10).sum()) / 2
    return radius if radius >= 1 else len(photograph) / 2  # a few photographs are black


def _scaled(photograph: Pixels, factor: float) -> Pixels:
    """Bilinear interpolation between the four nearest pixels, not antialiased, as OpenCV's."""
    rows, below, down = _neighbours(photograph.shape[0], factor)
    columns, right, across = _neighbours(photograph.shape[1], factor)
    down, across = down[:, None, None], across[:, None]
    image = photograph[rows] * (1 - down) + photograph[below] * down  # [H', W, 3]
    image = image[:, columns] * (1 - across) + image[:, right] * across  # [H', W', 3]
    return np.rint(image).astype(np.uint8)


def _neighbours(
    length: int, factor: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Of every new pixel the two old ones between which it lies, and how far it is from the first to the second."""
    position = (np.arange(round(length * factor)) + 0.5) / factor - 0.5
    position = position.clip(0, length - 1)
    first = position.astype(np.int64)
    return first, np.minimum(first + 1, length - 1), (position - first).astype(np.float32)


def _levelled(eye: Pixels) -> Pixels:
    """Four times the difference to a Gaussian mean, around grey."""
    from scipy.ndimage import gaussian_filter

    sigma = RADIUS / 30
    mean = gaussian_filter(eye.astype(np.float32), (sigma, sigma, 0), truncate=3.0, mode="mirror")
    levelled = 4.0 * eye - 4.0 * np.rint(mean) + GREY
    pixels: Pixels = levelled.clip(0, 255).astype(np.uint8)
    return pixels


def _cut_out(eye: Pixels, radius: int) -> Pixels:
    """The square around a disc in the middle, grey outside the disc."""
    height, width = eye.shape[:2]
    y, x = np.arange(height) - height // 2, np.arange(width) - width // 2
    outside = x[None, :] ** 2 + y[:, None] ** 2 > radius**2
    image = eye.copy()
    image[outside] = GREY
    top, left = max(height // 2 - radius, 0), max(width // 2 - radius, 0)
    return image[top : height // 2 + radius, left : width // 2 + radius]
