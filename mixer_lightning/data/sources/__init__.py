"""Where samples are stored: every function of this package returns a `Dataset`.

Legend: N images of a split, B images asked for, L labels an image has at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]  # RGB, [H, W, 3]
    Indices = npt.NDArray[np.int64]  # [B], or [N]


class BadImage(ValueError):
    """One stored image cannot be read or decoded; the message names it and the reason."""


class Images(Protocol):
    """The labelled images of one split, by index; safe to read from several threads."""

    def __len__(self) -> int:
        """Number of images, N."""

    def labels(self, indices: Indices) -> npt.NDArray[np.int64]:
        """Class indices [B]; or [B, L] where images have several, short rows filled up with -1."""

    def read(self, index: int) -> bytes | Pixels:
        """An encoded file, or RGB pixels [H, W, 3]; raises OSError or ValueError when it cannot be read."""

    def key(self, index: int) -> str:
        """What this image is called in its data set, the same wherever it is stored: a relative path, a row."""

    def name(self, index: int) -> str:
        """Where this image is, for messages: a file, a shard and member, or a row."""


@runtime_checkable
class Stored(Protocol):
    """What `Images` in shards know besides: how they lie on disk."""

    def stretches(self) -> list[int]:
        """Numbers of consecutive images that lie together, one for each shard; their sum is N."""

    def expect(self, shards: Sequence[int]) -> None:
        """These shards are read next, in about this order."""

    def hashes(self) -> npt.NDArray[np.uint32]:
        """`draws.hash32` of every image's key, [N]."""


@dataclass(frozen=True)
class Dataset:
    """Splits that share one list of classes.

    `classes[label]` names a class, and `len(classes)` is the size of the head. `splits` has "train" and at least
    one of "val" and "test".
    """

    name: str
    classes: list[str]
    splits: dict[str, Images]
