"""What every way of storing samples offers: `Images` of a split, and a `Dataset` of splits with their classes.

The modules of this package each read one kind of storage; their functions return a `Dataset`.

Legend: N images of a split, B images asked for, L labels an image has at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from mixer_lightning.data.transforms import Augment

    Pixels = npt.NDArray[np.uint8]  # RGB, [H, W, 3]
    Indices = npt.NDArray[np.int64]  # [B], or [N]


class BadImage(ValueError):
    """One stored image cannot be read or decoded; the message names it and the reason."""


class StorageError(OSError):
    """Where many images are kept can be read no more, a shard that was cut for one: no image is replaced by another."""


class Images(Protocol):
    """The labelled images of one split, by index; safe to read from several threads."""

    def __len__(self) -> int:
        """Number of images, N."""

    def labels(self, indices: Indices) -> npt.NDArray[np.int64]:
        """Class indices [B]; or [B, L] where images have several, short rows padded with -1."""

    def read(self, index: int) -> bytes | Pixels:
        """An encoded file, or RGB pixels [H, W, 3].

        Raises:
            OSError, ValueError: it cannot be read.
            StorageError: nor can what lies beside it.
        """

    def key(self, index: int) -> str:
        """The image's identifier in its data set, the same wherever it is stored: a relative path, a row."""

    def name(self, index: int) -> str:
        """Where this image is, for messages: a file, a shard and member, or a row."""


@runtime_checkable
class Stored(Protocol):
    """What `Images` in shards offer besides: how they are laid out on disk."""

    def shard_sizes(self) -> list[int]:
        """Numbers of consecutive images in each shard; their sum is N."""

    def prefetch(self, shards: Sequence[int]) -> None:
        """These shards are read next, in about this order."""

    def hashes(self) -> npt.NDArray[np.uint32]:
        """`stateless_random.hash32` of every image's key, without a number of `names.numbered`, [N]."""


@runtime_checkable
class Marked(Protocol):
    """What `Images` offer besides that can tell an image from another of the same key without decoding it."""

    def mark(self, index: int) -> int:
        """A number that hardly any other image has: a checksum, or the size of its file in bytes."""


@runtime_checkable
class Streamed(Protocol):
    """What `Images` offer instead of images by index that only come as a stream: data/streaming.py reads them."""

    def identity(self) -> dict[str, Any]:
        """What tells this stream from another, in the form of data/identity.py."""

    def exactness(self) -> str:
        """What is exact of a run on it, and what is not, in one sentence."""


LabelChange = Literal["crop", "flip"]


@dataclass(frozen=True)
class Dataset:
    """Splits that share one list of classes.

    `classes[label]` names a class, and `len(classes)` is the size of the head. `splits` has "train", unless it is for
    evaluation alone, and "val", "test" or both. `label_changes_with` names what augmentation must not do, since the
    label would be wrong: a random crop where something is counted, a flip where the label says left or right.
    """

    name: str
    classes: list[str]
    splits: dict[str, Images]
    label_changes_with: tuple[LabelChange, ...] = ()

    def refuse_label_changing(self, augment: Augment) -> None:
        """See that no random crop or flip of `augment` makes labels wrong.

        Raises:
            ValueError: one would; the message says what to set.
        """
        whole = {"crop": "none", "eval_crop": 1.0, "eval_resize": "square"}  # the whole image is seen
        needed = {
            **(whole if "crop" in self.label_changes_with else {}),
            **({"flip": 0.0} if "flip" in self.label_changes_with else {}),
        }
        wrong = {key: value for key, value in needed.items() if getattr(augment, key) != value}
        if wrong:
            raise ValueError(
                f"{self.name}: a label changes with a {' or a '.join(self.label_changes_with)}: use "
                + " ".join(f"augment.{key}={value}" for key, value in wrong.items())
            )
