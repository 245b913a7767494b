"""Where samples are stored: every function of this package returns a `Dataset`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from PIL import Image


class BadImage(ValueError):
    """One stored image cannot be decoded; the message names it and the reason."""


class Images(Protocol):
    """The labelled images of one split, by index; safe to use from several worker processes."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """An RGB image and its class index; raises BadImage when it cannot be decoded."""

    def name(self, index: int) -> str:
        """Say which image this is, for messages: a file, a shard and member, or a row."""


@dataclass(frozen=True)
class Dataset:
    """Splits that share one list of classes.

    `classes[label]` names a class, and `len(classes)` is the size of the head. `splits` has "train" and at least
    one of "val" and "test".
    """

    name: str
    classes: list[str]
    splits: dict[str, Images]
