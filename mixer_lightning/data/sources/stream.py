"""Shards that are only read from front to end, as webdataset streams them: pipes, or tars too large and far to index.

A stream is for training alone. What is evaluated on lies in shards with an index, where each image counts once.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from mixer_lightning.data.sources import Dataset, Images, remote
from mixer_lightning.data.sources.labels import read_names
from mixer_lightning.data.sources.prepared import describe
from mixer_lightning.data.sources.shards import open_shards
from mixer_lightning.ranges import NonNegativeInt, PositiveInt, check_ranges

if TYPE_CHECKING:
    from mixer_lightning.data.sources import Indices


@check_ranges
def stream(
    *,
    root: str,
    train: str | list[str] | None = None,
    samples_per_epoch: PositiveInt | None = None,
    classes: str | None = None,
    val: str | list[str] | None = None,
    test: str | list[str] | None = None,
    name: str = "stream",
    labels_per_image: PositiveInt = 1,
    shuffle_buffer: PositiveInt = 1000,
    workers: NonNegativeInt = 0,
    cache: str | None = None,
    cache_bytes: PositiveInt = 200_000_000_000,
) -> Dataset:
    """Training samples from the shards that `train` names, as webdataset opens them; val and test with an index.

    `train` is a pattern with {000..009} or {a,b}, relative to `root`, a URL or a command (`pipe:curl -s https://...`),
    or a list of these. A sample is as in `shards`, but links in a tar file are not followed. An epoch is
    `samples_per_epoch` samples, over all processes: nobody counts them first. `classes` is a file with one name a line,
    in the order of labels; without it dataset.json under `root` names them. `val` and `test` are as in `shards`, or lie
    under `root`, with dataset.json or without.

    Samples are shuffled among `shuffle_buffer`, in each process. A process reads its shards one at a time, or `workers`
    of them at once, each in a process of its own. An image with more labels than `labels_per_image` counts as bad.

    Raises FileNotFoundError, OSError or ValueError naming what is missing or wrong.
    """
    base = remote.absolute(root)
    if train is None:
        raise ValueError(
            f"{name}: data.train is missing: the shards to stream, such as "
            "data.train='pipe:curl -s https://host/x-{000..009}.tar'"
        )
    if samples_per_epoch is None:
        raise ValueError(
            f"{name}: data.samples_per_epoch is missing: a stream is not counted before it is read, so say how many "
            "samples an epoch is to have"
        )
    names = (
        read_names(classes, key="data.classes")
        if classes is not None
        else describe(name, base, verify="size").classes
    )
    if names is None:
        raise ValueError(
            f"{name}: the classes are not known: a stream does not tell them before. Set data.classes=<file>, "
            f'one name a line in the order of labels, or write {{"classes": [...]}} into {base}/dataset.json'
        )
    patterns = [train] if isinstance(train, str) else train
    addresses = [address for each in patterns for address in remote.expand(each, base)]
    twice = [address for address, count in Counter(addresses).items() if count > 1]
    if not addresses or twice:
        raise ValueError(
            f"{name}: data.train={train} names {f'{twice[0]} more than once' if twice else 'no shards'}"
        )
    missing = [each for each in addresses if not remote.is_remote(each) and not Path(each).exists()]
    if missing:
        more = f" (nor do {len(missing) - 1:,} more)" if len(missing) > 1 else ""
        raise FileNotFoundError(f"{name}: data.train={train} names {missing[0]}, which does not exist{more}")
    splits: dict[str, Images] = {
        "train": StreamImages(
            name,
            addresses,
            names,
            base=base,
            samples_per_epoch=samples_per_epoch,
            labels_per_image=labels_per_image,
            shuffle_buffer=shuffle_buffer,
            workers=workers,
        )
    }
    evaluated = _evaluated(name, root, names, val, test, cache, cache_bytes)
    return replace(evaluated, splits=splits | evaluated.splits)


def _evaluated(
    name: str,
    root: str,
    classes: list[str],
    val: str | list[str] | None,
    test: str | list[str] | None,
    cache: str | None,
    cache_bytes: int,
) -> Dataset:
    """The splits with an index; ValueError where there are none, or of other classes."""
    try:
        found = open_shards(
            root=root,
            name=name,
            num_classes=None,
            patterns={"val": val, "test": test},
            verify="size",
            cache=cache,
            cache_bytes=cache_bytes,
            classes=classes,
        )
    except FileNotFoundError as error:
        if val is not None or test is not None:
            raise
        raise FileNotFoundError(
            f"{name}: there are neither val nor test shards under {root} to evaluate on, and a stream cannot be: each "
            "image counts once there. Set data.val=<pattern> or data.test=, or data.root=<folder with val-*.tar>"
        ) from error
    if found.classes != classes:
        raise ValueError(
            f"{name}: data.classes names {len(classes):,} classes, and dataset.json under {root} "
            f"{len(found.classes):,} or others: leave data.classes out, or give the same in the same order"
        )
    return found


class StreamImages:
    """The training split of a stream: how long an epoch is, and those images that were found to be bad.

    It is `Images` by its length alone. What asks it for an image is told that there is no index.
    """

    def __init__(
        self,
        data: str,
        addresses: Sequence[str],
        classes: Sequence[str],
        *,
        base: str,
        samples_per_epoch: int,
        labels_per_image: int,
        shuffle_buffer: int,
        workers: int,
    ) -> None:
        self.data, self.base, self.addresses = data, base, list(addresses)
        self.labels_of = {each: label for label, each in enumerate(classes)}
        self.samples_per_epoch, self.labels_per_image = samples_per_epoch, labels_per_image
        self.shuffle_buffer, self.workers = shuffle_buffer, workers
        self._noted: dict[tuple[str, str], int] = {}  # (shard, key) of bad images, and their indices
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.samples_per_epoch

    def exactness(self) -> str:
        """What is exact of a run on this stream, and what is not, in one sentence."""
        return (
            f"{self.data}: training reads a stream of {len(self.addresses):,} shards: an epoch is {len(self):,} "
            "samples by count, not each image once; they are shuffled among "
            f"{self.shuffle_buffer:,}, in an order that is not repeatable; a resumed run goes on with its weights, "
            "optimiser and schedule, and with the stream from its beginning in another order, so that some images of "
            "the epoch come again and others not; evaluation is exact"
        )

    def refuse(self, *, world_size: int, repeats: int, overfit_batches: int | None) -> None:
        """See that every reader has a shard of its own, and that nothing is asked for that a stream cannot give.

        Raises:
            ValueError: it is not so.
        """
        readers = world_size * max(1, self.workers)
        if len(self.addresses) < readers:
            each = f" with data.workers={self.workers} each" if self.workers else ""
            raise ValueError(
                f"{self.data}: {len(self.addresses)} shards do not suffice for {world_size} processes{each}: a shard "
                f"is read by one reader at a time. Use {readers} shards or more, or fewer processes or workers"
            )
        for key, value, without in (("repeats", repeats, 1), ("overfit_batches", overfit_batches, None)):
            if value != without:
                raise ValueError(
                    f"{self.data}: {key}={value} takes an image several times, which a stream gives once: set "
                    f"{key}={'null' if without is None else without}"
                )

    def identity(self) -> dict[str, Any]:
        """What tells the stream from another, in the form of data/identity.py: its shards below its root."""
        names = [each.removeprefix(f"{self.base}/") for each in self.addresses]
        text = json.dumps([names, self.labels_per_image]).encode()
        digest = hashlib.sha256(text).hexdigest()[:16]
        return {"keys": digest, "labelled": digest, "marks": {}}

    def note(self, shard: str, key: str) -> int:
        """An index for a bad image, or for a shard (without a key) that cannot be read."""
        with self._lock:
            return self._noted.setdefault((shard, key), len(self._noted))

    def labels(self, indices: Indices) -> npt.NDArray[np.int64]:
        """-1, for those that were noted."""
        if any(index >= len(self._noted) for index in indices.tolist()):
            self._refuse_index()
        return np.full(len(indices), -1, np.int64)

    def read(self, index: int) -> bytes:
        """No image has an index."""
        self._refuse_index()

    def key(self, index: int) -> str:
        """Of one that was noted."""
        return "/".join(each for each in self._at(index) if each)

    def name(self, index: int) -> str:
        """The shard and the name of the sample, of one that was noted."""
        return ": ".join(each for each in self._at(index) if each)

    def _at(self, index: int) -> tuple[str, str]:
        with self._lock:
            if index >= len(self._noted):
                self._refuse_index()
            return [*self._noted][index]

    def _refuse_index(self) -> NoReturn:
        raise ValueError(
            f"{self.data}: train is a stream, which has no index: its images can be trained on, and not be counted, "
            "sliced, balanced or evaluated on. Shards with an index can: data=shards"
        )
