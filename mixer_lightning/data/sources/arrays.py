"""Images of one size in memory."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mixer_lightning.data.sources import Indices, Pixels


class Arrays:
    """Pixels uint8 [N, H, W, 3] and their labels [N] or [N, L]; a batch of them is one indexing operation.

    `rows` are the numbers that messages and `key` give to the images, 0 ... N - 1 unless given.
    """

    def __init__(
        self,
        name: str,
        pixels: Pixels,
        labels: npt.ArrayLike,
        *,
        rows: Sequence[int] | None = None,
    ) -> None:
        self.pixels = pixels
        self._name, self._labels = name, np.asarray(labels, dtype=np.int64)
        self._rows = range(len(pixels)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.pixels)

    def labels(self, indices: Indices) -> npt.NDArray[np.int64]:
        """Class indices [B] or [B, L]."""
        return self._labels[indices]

    def read(self, index: int) -> Pixels:
        """RGB pixels [H, W, 3]."""
        pixels: Pixels = self.pixels[index]
        return pixels

    def key(self, index: int) -> str:
        """The row, in nine digits, so that keys sort as rows do."""
        return f"{self._rows[index]:09}"

    def mark(self, index: int) -> int:
        """A checksum of the pixels."""
        return zlib.crc32(self.pixels[index].tobytes())

    def name(self, index: int) -> str:
        """Which row of what."""
        return f"{self._name} row {self._rows[index]}"
