"""Slices and sums of splits: `train[:99%]` for training, `train[99%:]` to select hyperparameters.

A slice holds the images whose key's hash is in its part of the range, so an image stays on its side however the set is
stored or sorted; a slice of 1 % holds about, not exactly, a hundredth of the images.
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mixer_lightning.data.sources import Dataset, Images, Stored, Streamed
from mixer_lightning.data.sources.folder import LAYOUT
from mixer_lightning.data.sources.imagenet_archives import is_wnid, wnids_of
from mixer_lightning.data.sources.names import shard_key
from mixer_lightning.data.stateless_random import hash32

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mixer_lightning.data.sources import Indices, Pixels

log = logging.getLogger(__name__)

LABELS_PER_CALL = 2**18
_SLICE = re.compile(r"(?P<split>\w+)(\[(?P<low>\d+(\.\d+)?%)?:(?P<high>\d+(\.\d+)?%)?\])?")


def choose(
    data: Dataset,
    *,
    train: str = "train",
    val: str | None = None,
    test: str | None = None,
    training: bool = True,
) -> Dataset:
    """`data` with the splits described: each a split of `data`, a slice of one (`train[:99%]`), or several joined by +.

    val and test default to the splits of that name, where no other split uses them; "none" leaves a split out. Without
    `training`, train may be missing, with all that is cut from it; and where it is all that there is, it is the test.

    Raises:
        ValueError: a description cannot be read, names no split, or holds no image; training and evaluation overlap.
    """
    wanted: dict[str, str | None] = {"train": train, "val": val, "test": test}
    if "train" not in data.splits:
        if training and re.search(r"\btrain\b", train):
            raise ValueError(
                f"{data.name}: there is no train split to learn from, only {' and '.join(data.splits)}. Add one (in "
                f"folders, {LAYOUT}), or cut it: train_split='val[:90%]' val_split='val[90%:]'."
            )
        wanted = {
            name: None if re.search(r"\btrain\b", text or "") else text for name, text in wanted.items()
        }
    elif not training and data.splits.keys() == {"train"} and (train, val, test) == ("train", None, None):
        wanted = {"train": None, "val": None, "test": "train"}
    used = " ".join(text for text in wanted.values() if text is not None)
    for name in ("val", "test"):
        if wanted[name] is None and name in data.splits and not re.search(rf"\b{name}\b", used):
            wanted[name] = name
    chosen = {name: text for name, text in wanted.items() if text is not None and text != "none"}
    if training and "train" not in chosen:
        raise ValueError(f"{data.name}: train_split=none leaves no images to learn from.")
    _refuse_overlap(data, chosen)
    splits = {name: _part(data, f"{name}_split", text) for name, text in chosen.items()}
    if not splits.keys() & {"val", "test"}:
        raise ValueError(
            f"{data.name}: there is neither a val nor a test split to evaluate on. Set for example "
            "train_split='train[:90%]' and val_split='train[90%:]'."
        )
    if training and "[" in train:
        _say_left_without_images(data, splits["train"], train)
    return replace(data, splits=splits)


def _say_left_without_images(data: Dataset, images: Images, text: str) -> None:
    """Name the classes that training will not see, since a slice holds none of their images."""
    lost = _labels_seen(data.splits.get("train", images)) - _labels_seen(images)
    if lost:
        shown = ", ".join(repr(data.classes[label]) for label in sorted(lost)[:5])
        log.warning(
            "%s: train_split=%s leaves %s of %s classes without a training image: %s%s",
            *(data.name, text, f"{len(lost):,}", f"{len(data.classes):,}", shown),
            " and more" if len(lost) > 5 else "",
        )


def class_counts(data: Dataset, split: str = "train") -> npt.NDArray[np.int64]:
    """How many images of a split have each class, [K]; one with several labels counts for each."""
    counts = np.zeros(len(data.classes), np.int64)
    for labels in _labels(data.splits[split]):
        counts += np.bincount(labels, minlength=len(counts))
    return counts


def _labels(images: Images) -> Iterator[npt.NDArray[np.int64]]:
    """The class indices of all images, many at a time, [M]; one with several labels gives each."""
    for first in range(0, len(images), LABELS_PER_CALL):
        labels = images.labels(np.arange(first, min(first + LABELS_PER_CALL, len(images))))
        yield labels[labels >= 0]


def _labels_seen(images: Images) -> set[int]:
    """The class indices that images have."""
    seen: set[int] = set()
    for labels in _labels(images):
        seen.update(np.unique(labels).tolist())
    return seen


def by_class_names(data: Dataset, classes: Sequence[str]) -> Dataset:
    """`data` with the labels of a model of these classes, where they are by name some of them, in any order.

    Where one of both calls ImageNet's classes by their WordNet ids and the other by their first synonyms, the ids are
    compared. Data are left as they are whose classes are none of these, or which several of these are called like.

    Raises:
        ValueError: the model knows some of the classes, but not all; the others are named.
    """
    if list(classes) != data.classes and any(map(is_wnid, classes)) != any(map(is_wnid, data.classes)):
        there, here = wnids_of(classes), wnids_of(data.classes)
        if there is not None and here is not None:
            mapped = _by_class_names(replace(data, classes=here), there)
            return replace(mapped, classes=list(classes)) if mapped.classes == there else data
    return _by_class_names(data, classes)


def _by_class_names(data: Dataset, classes: Sequence[str]) -> Dataset:
    label_of = {name: label for label, name in enumerate(classes)}
    unknown = [name for name in data.classes if name not in label_of]
    if list(classes) == data.classes or len(unknown) == len(data.classes) or len(label_of) < len(classes):
        return data
    if unknown:
        shown = ", ".join(map(repr, unknown[:5])) + (" and more" if len(unknown) > 5 else "")
        raise ValueError(
            f"{data.name}: {len(unknown):,} of its {len(data.classes):,} classes are none of the {len(classes):,} that "
            f"the checkpoint knows: {shown}. Leave their images out, or call them as it does."
        )
    log.info(
        "%s: %s of the checkpoint's %s classes, by name",
        data.name,
        f"{len(data.classes):,}",
        f"{len(classes):,}",
    )
    labels = np.array([label_of[name] for name in data.classes] + [-1])  # the last: no label, -1
    splits: dict[str, Images] = {
        name: images if isinstance(images, Streamed) else Relabelled(images, labels)
        for name, images in data.splits.items()
    }
    return replace(data, classes=list(classes), splits=splits)


def refuse_one_class(data: Dataset) -> None:
    """See that there is something to tell apart: a model of one class is always right.

    Raises:
        ValueError: all training images are of one class; the message names it, and what is expected.
    """
    images = data.splits["train"]
    if isinstance(images, Streamed) and len(data.classes) > 1:  # nobody knows before they are read
        return
    seen: set[int] = set()
    for labels in _labels(images):
        seen.update(np.unique(labels).tolist())
        if len(seen) > 1:
            return
    which = ", ".join(repr(data.classes[label]) for label in seen)
    raise ValueError(
        f"{data.name}: all {len(images):,} training images are of one class, {which}: there is nothing to tell apart. "
        f"Expected images of two classes or more; in folders, {LAYOUT}."
    )


def _part(data: Dataset, key: str, text: str) -> Images:
    parts = []
    for term in text.split("+"):
        split, low, high = _parse(data, key, term)
        images = data.splits[split]
        if (low, high) == (0, 2**32):
            parts.append(images)
            continue
        hashes = _hashes(images)
        indices = np.flatnonzero((hashes >= low) & (hashes < high))
        if len(indices) == 0:
            raise ValueError(f"{data.name}: {key}={text} holds none of the {len(images):,} images.")
        parts.append(Subset(images, indices))
    if len(parts) > 1 and any(isinstance(each, Streamed) for each in parts):
        raise ValueError(f"{data.name}: {key}={text}: a stream cannot be joined with other images.")
    return parts[0] if len(parts) == 1 else Joined(parts)


def _parse(data: Dataset, key: str, term: str) -> tuple[str, int, int]:
    """Name of a split and the range of hashes, [low, high)."""
    match = _SLICE.fullmatch(term.strip())
    if match is None:
        raise ValueError(f"{data.name}: cannot read {key}={term!r}. Write train, train[:99%], or train+val.")
    if match["split"] not in data.splits:
        raise ValueError(f"{data.name}: {key}={term} names no split; there are {', '.join(data.splits)}.")
    low, high = (
        round(float(match[side][:-1]) / 100 * 2**32) if match[side] else default
        for side, default in (("low", 0), ("high", 2**32))
    )
    if not 0 <= low < high <= 2**32:
        raise ValueError(f"{data.name}: {key}={term} needs 0% <= first figure < second figure <= 100%.")
    return match["split"], low, high


def _refuse_overlap(data: Dataset, wanted: dict[str, str]) -> None:
    """An image must not be trained on and evaluated on, nor be in a split twice."""
    ranges = {
        name: [_parse(data, f"{name}_split", term) for term in text.split("+")]
        for name, text in wanted.items()
    }
    for name, parts in ranges.items():
        for (split, low, high), (other, other_low, other_high) in combinations(parts, 2):
            if split == other and max(low, other_low) < min(high, other_high):
                raise ValueError(f"{data.name}: {name}_split={wanted[name]} holds images of {split} twice.")
    for name in wanted.keys() - {"train"}:
        for split, low, high in ranges[name]:
            for other, other_low, other_high in ranges.get("train", ()):
                if split == other and max(low, other_low) < min(high, other_high):
                    raise ValueError(
                        f"{data.name}: train_split={wanted['train']} and {name}_split={wanted[name]} share images."
                    )


def _hashes(images: Images) -> npt.NDArray[np.uint32]:
    if isinstance(images, Stored):
        return images.hashes()
    return np.fromiter((hash32(shard_key(images.key(i))) for i in range(len(images))), np.uint32, len(images))


def shard_sizes(images: Images) -> list[int]:
    """How many consecutive images lie together, shard by shard; [N] where images are not stored in shards."""
    return images.shard_sizes() if isinstance(images, Stored) else [len(images)]


def with_few_to_evaluate(data: Dataset, num_images: int) -> Dataset:
    """`data` with at most so many images in each split but train, spread evenly over it."""
    few = {
        name: Subset(images, np.unique(np.linspace(0, len(images) - 1, num_images).astype(np.int64)))
        for name, images in data.splits.items()
        if name != "train" and len(images) > num_images
    }
    return replace(data, splits=data.splits | few)


class Subset:
    """Some images of a split, in its order."""

    def __init__(self, images: Images, indices: Indices) -> None:
        self.images, self.indices = images, indices

    def __len__(self) -> int:
        return len(self.indices)

    def labels(self, indices: Indices) -> npt.NDArray[np.int64]:
        """Class indices [B] or [B, L]."""
        return self.images.labels(self.indices[indices])

    def read(self, index: int) -> bytes | Pixels:
        """An encoded file, or pixels."""
        return self.images.read(int(self.indices[index]))

    def key(self, index: int) -> str:
        """The image's identifier."""
        return self.images.key(int(self.indices[index]))

    def name(self, index: int) -> str:
        """Where the image is."""
        return self.images.name(int(self.indices[index]))

    def shard_sizes(self) -> list[int]:
        """Numbers of chosen images in each shard, 0 for some perhaps."""
        ends = np.cumsum(shard_sizes(self.images))
        counts = np.diff(np.searchsorted(self.indices, ends, side="left"), prepend=0)
        return [int(count) for count in counts]

    def prefetch(self, shards: Sequence[int]) -> None:
        """These shards are read next."""
        if isinstance(self.images, Stored):
            self.images.prefetch(shards)

    def hashes(self) -> npt.NDArray[np.uint32]:
        """Of every chosen image's key."""
        return _hashes(self.images)[self.indices]


class Relabelled(Subset):
    """All images of a split, with other labels: `new_labels[label]`."""

    def __init__(self, images: Images, new_labels: npt.NDArray[np.int64]) -> None:
        super().__init__(images, np.arange(len(images)))
        self.new_labels = new_labels

    def labels(self, indices: Indices) -> npt.NDArray[np.int64]:
        """Class indices [B] or [B, L]."""
        return self.new_labels[super().labels(indices)]


class Joined:
    """Several splits, one after the other."""

    def __init__(self, parts: list[Images]) -> None:
        self.parts = parts
        self.ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def labels(self, indices: Indices) -> npt.NDArray[np.int64]:
        """Class indices [B] or [B, L]."""
        which = np.searchsorted(self.ends, indices, side="right")
        found = [part.labels(indices[which == i] - self._first(i)) for i, part in enumerate(self.parts)]
        longest = max(labels.shape[1] if labels.ndim == 2 else 1 for labels in found)
        labels = np.full((len(indices), longest), -1, np.int64)
        for i, theirs in enumerate(found):
            wide = theirs if theirs.ndim == 2 else theirs[:, None]
            labels[which == i, : wide.shape[1]] = wide
        return labels if any(theirs.ndim == 2 for theirs in found) else labels[:, 0]

    def read(self, index: int) -> bytes | Pixels:
        """An encoded file, or pixels."""
        part, inside = self.find(index)
        return part.read(inside)

    def key(self, index: int) -> str:
        """The image's identifier."""
        part, inside = self.find(index)
        return part.key(inside)

    def name(self, index: int) -> str:
        """Where the image is."""
        part, inside = self.find(index)
        return part.name(inside)

    def find(self, index: int) -> tuple[Images, int]:
        """The part that an image is in, and its index there."""
        part = int(np.searchsorted(self.ends, index, side="right"))
        return self.parts[part], index - self._first(part)

    def shard_sizes(self) -> list[int]:
        """Those of all parts."""
        return [count for part in self.parts for count in shard_sizes(part)]

    def prefetch(self, shards: Sequence[int]) -> None:
        """These shards are read next."""
        first = 0
        for part in self.parts:
            count = len(shard_sizes(part))
            if isinstance(part, Stored):
                part.prefetch([shard - first for shard in shards if first <= shard < first + count])
            first += count

    def hashes(self) -> npt.NDArray[np.uint32]:
        """Of every image's key."""
        return np.concatenate([_hashes(part) for part in self.parts])

    def _first(self, part: int) -> int:
        return int(self.ends[part]) - len(self.parts[part])
