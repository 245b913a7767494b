"""A source opened for one pass: which splits and classes it has, and its samples in order.

Archives and lists are read here and in the files beside; every other data set through its function of
conf/data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mixer_lightning.config.compose import compose_one
from mixer_lightning.config.signatures import build, signature
from mixer_lightning.data.sources import Stored
from mixer_lightning.data.sources.names import stem, suffix_of
from mixer_lightning.prepare.options import Options

if TYPE_CHECKING:
    from mixer_lightning.data.sources import Dataset, Images, Pixels

LOOKED_AT = 256  # images from which the size of all is estimated
AT_A_TIME = 4096  # labels asked for

Place = tuple[int, int]  # part of the source, sample in it


class Sample(NamedTuple):
    """One image as the source has it; `read` may be called in another thread."""

    split: str
    key: str  # what it is called in its data set
    labels: tuple[int, ...]
    suffix: str  # the format that its file name claims, "" without one
    read: Callable[[], bytes | Pixels]
    place: Place  # where the sample after it begins
    done: int  # how much of the feed's `total` lies behind


class Extent(NamedTuple):
    """How much a split holds."""

    num_samples: int | None  # None: not known before it was read
    num_bytes: int  # of its encoded images, estimated


@dataclass(kw_only=True)
class Feed:
    """The samples of a source in the order of one pass.

    `samples(place)` goes on where the sample before ended. `left_out` names classes that the list of classes lacks,
    as far as they were met. `wnids[label]` is a WordNet id, where classes have one.
    """

    name: str
    release: str  # whose published counts it should have
    classes: list[str]
    splits: dict[str, Extent]
    labels_per_image: int
    fingerprint: list[str]  # tells another source, or one that has changed
    total: int  # in bytes of archives, else in samples
    samples: Callable[[Place], Iterator[Sample]]
    wnids: list[str] | None = None
    val_share: float = 0.0  # of train to hold out, unless the user says otherwise
    left_out: set[str] = field(default_factory=set)


def open_feed(options: Options) -> Feed:
    """The feed of a source.

    Raises:
        ValueError, OSError: the source is missing or not as it should be; the message says what was expected.
    """
    if options.source is not None and not options.source.exists():
        raise ValueError(f"source: there is nothing at {options.source}")
    if options.data in ("list", "jft300m"):
        from mixer_lightning.prepare import lists

        return lists.open_list(_source(options), options)
    if options.data == "imagenet21k":
        from mixer_lightning.prepare import imagenet

        return imagenet.open_21k(_source(options), options)
    if options.data == "imagenet1k" and not (_source(options) / "train").is_dir():
        from mixer_lightning.prepare import imagenet

        return imagenet.open_1k(_source(options), options)
    return from_dataset(_build(options), options)


def wanted_splits(there: Iterable[str], options: Options) -> list[str]:
    """The splits to write; ValueError when one is asked for that is not there."""
    there = list(there)
    missing = [split for split in options.splits or () if split not in there]
    if missing:
        raise ValueError(
            f"splits: {options.data} has no {' and no '.join(missing)}. There are: {', '.join(there)}"
        )
    return [split for split in there if options.splits is None or split in options.splits]


def _source(options: Options) -> Path:
    assert options.source is not None
    return options.source


def _build(options: Options) -> Dataset:
    """The data set of a node of conf/data, its root replaced by the source."""
    words = [f"data={options.data}", *options.overrides]
    if options.source is not None:
        node = compose_one("train", words).data
        if "root" not in signature(node["_target_"]):
            raise ValueError(f"source: {options.data} comes with its package and takes no source")
        words.append(f"data.root={options.source}")
    data: Dataset = build(compose_one("train", words).data)
    return data


# ------------------------------------------------------------------------------------------ data sets of ours


def from_dataset(data: Dataset, options: Options) -> Feed:
    """The feed of any `Dataset`."""
    splits = {split: data.splits[split] for split in wanted_splits(data.splits, options)}
    first = np.zeros(1, np.int64)
    num_labels = [1 if (x := images.labels(first)).ndim == 1 else x.shape[1] for images in splits.values()]
    return Feed(
        name=data.name,
        release=options.data,
        classes=list(data.classes),
        splits={split: Extent(len(images), _bytes(images)) for split, images in splits.items()},
        labels_per_image=max(num_labels, default=1),
        fingerprint=[
            digest(data.classes),
            *(f"{split}: {len(images)} {digest(_names(images))}" for split, images in splits.items()),
        ],
        total=sum(map(len, splits.values())),
        samples=partial(_samples_of, splits),
    )


def _samples_of(splits: dict[str, Images], start: Place) -> Iterator[Sample]:
    done = 0
    for part, (split, images) in enumerate(splits.items()):
        num_images = len(images)
        begin = start[1] if part == start[0] else 0
        for at in range(begin if part >= start[0] else num_images, num_images, AT_A_TIME):
            indices = np.arange(at, min(at + AT_A_TIME, num_images))
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


def _bytes(images: Images) -> int:
    """Bytes of all encoded images, from the mean of some evenly spaced ones; pixels count as they are."""
    sizes, reason = [], ""
    one_shard = images.shard_sizes()[0] if isinstance(images, Stored) else None  # the others may be far away
    for index in evenly(one_shard or len(images)):
        try:
            encoded = images.read(index)
        except (OSError, ValueError) as error:
            reason = reason or str(error)
        else:
            sizes.append(len(encoded) if isinstance(encoded, bytes) else encoded.nbytes)
    if not sizes and len(images):
        raise ValueError(f"none of the {min(len(images), LOOKED_AT)} images looked at can be read: {reason}")
    return round(len(images) * sum(sizes) / max(1, len(sizes)))


def _names(images: Images) -> Sequence[Any]:
    """What tells two sets of images apart without reading them."""
    if isinstance(images, Stored):
        return [hashlib.sha256(images.hashes().tobytes()).hexdigest()]
    return [images.key(index) for index in evenly(len(images))]


def evenly(num_images: int) -> list[int]:
    """Up to 256 indices, evenly spaced."""
    return (
        [i * num_images // LOOKED_AT for i in range(LOOKED_AT)]
        if num_images > LOOKED_AT
        else [*range(num_images)]
    )


def digest(words: Sequence[Any]) -> str:
    """A short checksum of texts."""
    text = "\n".join(map(str, words)).encode(errors="surrogateescape")
    return hashlib.sha256(text).hexdigest()[:16]
