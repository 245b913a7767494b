"""A source opened for one pass: which splits and classes it has, and its samples in order.

`read_dataset` reads any data set that is one for training already; archives and lists have files of their own.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mixer_lightning.data.identity import identity
from mixer_lightning.data.sources import Dataset, Images, LabelChange, Stored
from mixer_lightning.data.sources.folder import FolderImages
from mixer_lightning.data.sources.names import stem, suffix_of
from mixer_lightning.files import readable
from mixer_lightning.prepare.options import Options

if TYPE_CHECKING:
    from mixer_lightning.data.sources import Pixels

PROBED_IMAGES = 256  # whose sizes give the estimate for all
LABELS = (
    "labels"  # in a fingerprint, after the split: a sum over keys and labels, which earlier versions left out
)
LABELS_PER_CALL = 4096  # asked of a data set at once

Cursor = tuple[int, int]  # part of the source, sample in it


class Sample(NamedTuple):
    """One image as the source has it; `read` may be called in another thread."""

    split: str
    key: str  # what it is called in its data set
    labels: tuple[int, ...]
    suffix: str  # the format that its file name claims, "" without one
    read: Callable[[], bytes | Pixels]
    cursor: Cursor  # where the sample after it begins
    done: int  # how much of the source's `total` lies behind


class Extent(NamedTuple):
    """How much a split holds."""

    num_samples: int | None  # None: not known before it was read
    num_bytes: int  # of its encoded images, estimated


@dataclass(kw_only=True)
class Source:
    """The samples of a data set in the order of one pass.

    `samples(cursor)` goes on where the sample before ended; `samples(cursor, places=range)` passes over samples outside
    of these places of `total`, as `only` has it. `unknown_classes` names classes that the list of classes
    lacks, as far as they were met: their images are left out. `left_out` are (split, path) of files that are not images
    by their ending, and complete at the end of a pass. `wnids[label]` is a WordNet id, where classes have one.
    """

    name: str
    release: str  # whose published counts it should have
    classes: list[str]
    splits: dict[str, Extent]
    labels_per_image: int
    fingerprint: list[str]  # tells another source, or one that has changed
    total: int  # in bytes of archives, else in samples
    samples: Callable[..., Iterator[Sample]]
    places: range | None = None  # of `total`, which alone are read; None: all
    wnids: list[str] | None = None
    label_changes_with: tuple[LabelChange, ...] = ()  # as Dataset has it
    val_share: float = 0.0  # of train to hold out, unless the user says otherwise
    unknown_classes: set[str] = field(default_factory=set)
    left_out: list[tuple[str, str]] = field(default_factory=list)


#: All places of a source.
EVERYWHERE = range(sys.maxsize)


def only(source: Source, number: int, count: int) -> Source:
    """Part `number` of `count`, from 1 on, of a source: a stretch of it in its order. Together the parts are all.

    Files that are no images are listed by the last part, which alone passes over all of an archive.
    """
    is_last = number == count
    start, stop = source.total * (number - 1) // count, source.total * number // count
    places = range(start, sys.maxsize if is_last else stop)
    return replace(
        source,
        samples=partial(source.samples, places=places),
        places=range(start, stop),
        left_out=source.left_out if is_last else [],
    )


def selected_splits(available: Iterable[str], options: Options) -> list[str]:
    """The splits to write; ValueError when one is asked for that the source lacks."""
    available = list(available)
    missing = [split for split in options.splits or () if split not in available]
    if missing:
        raise ValueError(
            f"splits: {options.data} has no {' and no '.join(missing)}. There are: {', '.join(available)}"
        )
    return [split for split in available if options.splits is None or split in options.splits]


def evenly_spaced(num_images: int) -> list[int]:
    """Indices of up to `PROBED_IMAGES` images."""
    if num_images <= PROBED_IMAGES:
        return [*range(num_images)]
    return [i * num_images // PROBED_IMAGES for i in range(PROBED_IMAGES)]


# ------------------------------------------------------------------------------------------ any Dataset


def read_dataset(data: Dataset, options: Options) -> Source:
    """The samples of any `Dataset`, split by split."""
    splits = {split: data.splits[split] for split in selected_splits(data.splits, options)}
    first = np.zeros(1, np.int64)
    num_labels = [1 if (x := images.labels(first)).ndim == 1 else x.shape[1] for images in splits.values()]
    return Source(
        name=data.name,
        release=options.data,
        classes=list(data.classes),
        splits={split: Extent(len(images), _estimate_bytes(images)) for split, images in splits.items()},
        labels_per_image=max(num_labels, default=1),
        label_changes_with=data.label_changes_with,
        fingerprint=[
            _digest(data.classes),
            *(f"{split}: {len(images)} {_digest(_identity(images))}" for split, images in splits.items()),
            *(f"{split}: {LABELS} {identity(images)['labelled']}" for split, images in splits.items()),
        ],
        total=sum(map(len, splits.values())),
        samples=partial(_samples, splits),
        left_out=[
            (split, readable(path))
            for split, images in splits.items()
            if isinstance(images, FolderImages)
            for path in images.left_out
        ],
    )


def _samples(splits: dict[str, Images], start: Cursor, *, places: range = EVERYWHERE) -> Iterator[Sample]:
    done = 0
    for part, (split, images) in enumerate(splits.items()):
        num_images = len(images)
        begin = start[1] if part == start[0] else 0 if part > start[0] else num_images
        end = min(num_images, places.stop - done)
        for at in range(max(begin, places.start - done), end, LABELS_PER_CALL):
            indices = np.arange(at, min(at + LABELS_PER_CALL, end))
            for index, labels in zip(indices.tolist(), images.labels(indices).tolist(), strict=True):
                yield Sample(
                    split,
                    stem(images.key(index)),
                    tuple(label for label in labels if label >= 0) if isinstance(labels, list) else (labels,),
                    suffix_of(images.name(index)),
                    partial(images.read, index),
                    (part, index + 1),
                    done + index + 1,
                )
        done += num_images


def _estimate_bytes(images: Images) -> int:
    """Bytes of all encoded images, from the mean of evenly spaced ones; pixels count as they are."""
    sizes, reason = [], ""
    first_shard = images.shard_sizes()[0] if isinstance(images, Stored) else None  # others may be remote
    probed = evenly_spaced(first_shard or len(images))
    for index in probed:
        try:
            encoded = images.read(index)
        except (OSError, ValueError) as error:
            reason = reason or str(error)
        else:
            sizes.append(len(encoded) if isinstance(encoded, bytes) else encoded.nbytes)
    if not sizes and len(images):
        raise ValueError(f"none of {len(probed)} images that were tried can be read: {reason}")
    return round(len(images) * sum(sizes) / max(1, len(sizes)))


def _identity(images: Images) -> Sequence[Any]:
    """What tells two sets of images apart without reading them."""
    if isinstance(images, Stored):
        return [hashlib.sha256(images.hashes().tobytes()).hexdigest()]
    return [images.key(index) for index in evenly_spaced(len(images))]


def _digest(texts: Sequence[Any]) -> str:
    text = "\n".join(map(str, texts)).encode(errors="surrogateescape")
    return hashlib.sha256(text).hexdigest()[:16]
