"""Training batches of a stream: webdataset opens, splits and shuffles the shards, threads decode what comes.

A stream has no position that could be stored, and its order depends on how fast its readers are. What is exact: every
batch is full, all processes make the same number of steps, and the random numbers of augmentation are those of
(seed, step, place in the batch), as for every other data set.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import multiprocessing
import os
import queue
import random
import signal
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import webdataset
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from webdataset.utils import pytorch_worker_info

from mixer_lightning.data.loader import Loader
from mixer_lightning.data.sources import BadImage
from mixer_lightning.data.sources.names import IMAGE_SUFFIXES
from mixer_lightning.data.sources.samples import image_and_note, read_labels
from mixer_lightning.data.sources.stream import StreamImages
from mixer_lightning.data.stateless_random import derive_seed
from mixer_lightning.data.stream_shards import FAILED, Reading, read_shards
from mixer_lightning.stopping import SIGNALS

PREFETCHED = 16  # samples that a worker process has ready
QUEUED = 256  # samples that wait to be decoded
LOOK_SECONDS = 0.2  # between looks at whether the loader was closed
MAX_BAD_IN_A_ROW = 100  # samples


class Place(NamedTuple):
    """Which process of how many reads, from which step on."""

    rank: int
    world_size: int
    start_step: int


class StreamOrder:
    """Samples of a stream by their positions: they have no other index."""

    def __init__(self, samples_per_epoch: int) -> None:
        self.samples_per_epoch = samples_per_epoch

    def samples(self, positions: npt.NDArray[np.int64], repeats: int) -> npt.NDArray[np.int64]:
        """Epochs, places in the epoch and zeros, [B, 3]."""
        assert repeats == 1
        epochs, places = np.divmod(positions, self.samples_per_epoch)
        return np.stack([epochs, places, np.zeros_like(epochs)], axis=1)


# ------------------------------------------------------------------------------------------ webdataset's part


class EndlessShards(IterableDataset[dict[str, str]]):
    """The shards again and again, each pass in an order of its own. Splitting it among readers keeps passes whole."""

    def __init__(self, addresses: list[str], seed: int) -> None:
        self.addresses, self.seed = addresses, seed

    def __iter__(self) -> Iterator[dict[str, str]]:
        for number in itertools.count():
            order = list(self.addresses)
            random.Random(derive_seed(self.seed, "shards", number)).shuffle(order)
            yield from ({"url": address} for address in order)


class ShuffledSamples(IterableDataset[dict[str, Any]]):
    """The endless samples of this process or, in a worker process, of its part of them."""

    def __init__(self, addresses: list[str], *, shuffle_buffer: int, seed: int) -> None:
        self.addresses, self.shuffle_buffer, self.seed = addresses, shuffle_buffer, seed
        self.reading = Reading()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rank, _, worker, _ = pytorch_worker_info()
        seed, size = derive_seed(self.seed, rank, worker), self.shuffle_buffer
        pipeline = webdataset.DataPipeline(
            EndlessShards(self.addresses, self.seed),
            webdataset.split_by_node,
            webdataset.split_by_worker,
            partial(read_shards, reading=self.reading),
            webdataset.shuffle(size, initial=size, seed=seed),
        )
        yield from pipeline


def _same(item: Any) -> Any:
    return item


def _set_up_worker(place: Place, closing: Connection, worker: int) -> None:
    """In a worker process: say which process it reads for, leave signals to that, and end when that closes a pipe."""
    os.environ.update(RANK=str(place.rank), WORLD_SIZE=str(place.world_size))
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    here: Any = get_worker_info()
    threading.Thread(target=_end_with, args=(closing, here.dataset.reading), daemon=True).start()


def _end_with(closing: Connection, reading: Reading) -> None:
    """End this process, which may stand in a read for ever, and its command when the other end of a pipe is closed."""
    with contextlib.suppress(EOFError, OSError):
        closing.recv()
    reading.close()
    os._exit(0)


# ---------------------------------------------------------------------------------------------------- batches


@dataclass(frozen=True)
class Sample:
    """One image of the stream, or why there is none."""

    shard: str
    key: str
    encoded: bytes = b""
    labels: tuple[int, ...] = ()
    reason: str = ""


class Reader:
    """Takes samples from the stream in a thread of its own, before they are asked for."""

    def __init__(self, images: StreamImages, place: Place, seed: int) -> None:
        self.images, self.place = images, place
        self.seed = derive_seed(seed, "stream", place.start_step)
        self._queue: queue.Queue[Sample | Exception] = queue.Queue(QUEUED)
        self._closed = threading.Event()
        self._samples = ShuffledSamples(
            images.addresses, shuffle_buffer=images.shuffle_buffer, seed=self.seed
        )
        self._context = multiprocessing.get_context("spawn")
        self._of_workers, self._of_reader = self._context.Pipe(duplex=False)
        atexit.register(self.close)  # before multiprocessing waits for workers, which take no signal
        self._thread = threading.Thread(target=self._run, name="stream", daemon=True)
        self._thread.start()

    def take(self) -> Sample:
        """The next sample, waited for.

        Raises:
            BadImage: none of the shards can be read.
            OSError: the loader was closed.
        """
        while not self._closed.is_set():
            with contextlib.suppress(queue.Empty):
                found = self._queue.get(timeout=LOOK_SECONDS)
                if isinstance(found, Exception):
                    self._put(found)  # for the other threads
                    raise found
                return found
        raise OSError("the stream was closed")

    def close(self) -> None:
        """End the thread, the worker processes, and the commands that they wait for."""
        atexit.unregister(self.close)
        self._closed.set()
        self._of_reader.close()  # which ends the workers
        self._samples.reading.close()

    def _put(self, item: Sample | Exception) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=LOOK_SECONDS)
                return

    def _run(self) -> None:
        try:
            items = iter(self._items())
            for item in items:
                if self._closed.is_set():
                    break
                if (sample := self._sample(item)) is not None:
                    self._put(sample)
            if hasattr(items, "close"):
                items.close()
        except Exception as error:
            self._put(error)

    def _items(self) -> Iterable[dict[str, Any]]:
        found = pytorch_worker_info()[:2]
        if not self.images.workers:
            if found != self.place[:2]:
                raise BadImage(
                    f"{self.images.data}: webdataset takes this for process {found[0]} of {found[1]}, and it is "
                    f"{self.place.rank} of {self.place.world_size}: start it with torchrun or srun"
                )
            return self._samples
        return DataLoader(
            self._samples,
            batch_size=None,
            collate_fn=_same,
            num_workers=self.images.workers,
            prefetch_factor=PREFETCHED,
            multiprocessing_context=self._context,
            worker_init_fn=partial(_set_up_worker, self.place, self._of_workers),
        )

    def _sample(self, item: dict[str, Any]) -> Sample | None:
        """What an item of webdataset is to training; None for what is no sample."""
        shard, key = item["__url__"], item.get("__key__", "")
        if FAILED in item:
            return Sample(shard, "", reason=item[FAILED])
        names = {suffix: f"{key}.{suffix}" for suffix in item if not suffix.startswith("__")}
        if "cls" not in names and not any(suffix in IMAGE_SUFFIXES for suffix in names):
            return None
        try:
            image, note = image_and_note(key, names)
            labels = read_labels(key, names[note], item[note], self.images.labels_of, is_json=note == "json")
            if max(labels) >= len(self.images.labels_of):
                raise ValueError(f"label {max(labels)}, but there are {len(self.images.labels_of):,} classes")
            if len(labels) > self.images.labels_per_image:
                raise ValueError(
                    f"{len(labels)} labels, and data.labels_per_image={self.images.labels_per_image}"
                )
        except ValueError as error:
            return Sample(shard, key, reason=str(error))
        return Sample(shard, key, item[image], tuple(labels))


class StreamLoader(Loader):
    """Training batches of a stream; in the place of a bad image stands the next one that comes."""

    def __init__(
        self, images: StreamImages, plan: Any, augment: Any, *, seed: int, place: Place, **options: Any
    ) -> None:
        super().__init__(images, plan, augment, seed=seed, keep_in_memory=False, **options)
        self.stream = images
        self.reader = Reader(images, place, seed)
        self._bad_in_a_row = 0

    def close(self) -> None:
        """End the threads, and the reading."""
        self.reader.close()
        super().close()

    def _fill(self, indices: npt.NDArray[np.int64], keys: Any, out: Tensor) -> npt.NDArray[np.int64]:
        """Write the crops of the next samples to `out`; return their labels."""
        labels = np.full((len(indices), self.stream.labels_per_image), -1, np.int64)
        todo = np.arange(len(indices))
        while len(todo):
            samples = [self._next_good() for _ in todo]
            failed = dict(
                self._decode([each.encoded for each in samples], keys[todo], [out[i] for i in todo])
            )
            for position, (i, sample) in enumerate(zip(todo, samples, strict=True)):
                if position in failed:
                    self._add_bad(sample, failed[position])
                else:
                    self._bad_in_a_row = 0
                    labels[i, : len(sample.labels)] = sample.labels
            todo = todo[sorted(failed)]
        self.bad.count_read(len(indices))
        return labels if self.stream.labels_per_image > 1 else labels[:, 0]

    def _next_good(self) -> Sample:
        while (sample := self.reader.take()).reason:
            self._add_bad(sample, sample.reason)
        return sample

    def _add_bad(self, sample: Sample, reason: str) -> None:
        self.bad.add(self.stream.note(sample.shard, sample.key), reason)
        self._bad_in_a_row += 1  # each is recorded once, so a few that come again and again are no more
        if self._bad_in_a_row > MAX_BAD_IN_A_ROW:
            where = ": ".join(each for each in (sample.shard, sample.key) if each)
            raise BadImage(
                f"{self.stream.data}: more than {MAX_BAD_IN_A_ROW} samples of the stream in a row are bad, "
                f"the last {where}: {reason}"
            )
