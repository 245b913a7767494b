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
import re
import signal
import subprocess
import tarfile
import threading
import time
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
from webdataset.gopen import Pipe, gopen
from webdataset.tariterators import group_by_keys
from webdataset.utils import pytorch_worker_info

from mixer_lightning.data.loader import Loader
from mixer_lightning.data.sources import BadImage, remote
from mixer_lightning.data.sources.names import IMAGE_SUFFIXES
from mixer_lightning.data.sources.samples import image_and_note, read_labels
from mixer_lightning.data.sources.stream import StreamImages
from mixer_lightning.data.sources.tar import MAX_PADDING
from mixer_lightning.data.stateless_random import derive_seed
from mixer_lightning.stopping import SIGNALS

PREFETCHED = 16  # samples that a worker process has ready
QUEUED = 256  # samples that wait to be decoded
LOOK_SECONDS = 0.2  # between looks at whether the loader was closed
MAX_BAD_IN_A_ROW = 100  # samples
MAX_FAILING_SHARDS = 20  # in a row
PIPE_BYTES = 8192  # read at once, as webdataset does
FAILED = "__failed__"  # of an item that stands for a shard
NOTES_ON_SHARD = re.compile(r"__[^/]*__(?:$|/)")  # names that webdataset passes over


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


class StrictHeader(tarfile.TarInfo):
    """A header of a tar, where Python's tarfile takes a damaged one behind the first for the end."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> StrictHeader:
        """The next header.

        Raises:
            tarfile.EOFHeaderError: it is the block of zeros that ends the tar.
            tarfile.ReadError: it is damaged, or not there.
        """
        try:
            return super().fromtarfile(tar)
        except tarfile.HeaderError as error:
            if tar.offset == 0 or isinstance(error, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
                raise
            if isinstance(error, tarfile.InvalidHeaderError):  # type: ignore[attr-defined]
                raise tarfile.ReadError(
                    f"at byte {tar.offset:,} is no tar header, or a damaged one"
                ) from error
            raise tarfile.ReadError("it ends before the tar does: it was cut") from error


def shard_files(url: str, stream: Any) -> Iterator[dict[str, Any]]:
    """The files of a shard as webdataset's `tar_file_expander` gives them, and an empty item behind the last.

    Raises:
        tarfile.TarError, OSError: it is cut, or is not a tar.
        ValueError: more than a few zeros follow its end.
    """
    with tarfile.open(fileobj=stream, mode="r|*", tarinfo=StrictHeader) as tar:
        for member in tar:
            if member.isreg() and not NOTES_ON_SHARD.match(member.name):
                data = tar.extractfile(member)
                assert data is not None
                yield {"fname": member.name, "data": data.read(), "__url__": url}
            tar.members = []  # type: ignore[attr-defined]  # or it keeps every header
        assert tar.fileobj is not None
        rest = tar.fileobj.read(MAX_PADDING + 1)
        if len(rest) > MAX_PADDING or rest.strip(b"\0"):
            raise ValueError(f"it ends at byte {tar.offset:,}, but more follows: it is empty in the middle")
    yield {}


class Watched:
    """An opened shard that says of a command that fails how it ended."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def read(self, count: int) -> bytes:
        """The next bytes, fewer only at the end."""
        with self._exit_code():
            data: bytes = self.stream.read(count)
        return data

    def close(self) -> None:
        """Close the shard; OSError where the command that gave it failed."""
        with self._exit_code():
            self.stream.close()

    @contextlib.contextmanager
    def _exit_code(self) -> Iterator[None]:
        """Say of a command that fails how it ended, and no more."""
        try:
            yield
        except OSError as error:
            if isinstance(self.stream, Pipe) and (code := self.stream.proc.returncode):
                raise OSError(f"its command ended with exit code {code}") from error
            raise

    def kill(self) -> None:
        """End the command, if there is one, and what it started: a thread that reads from it goes on."""
        if isinstance(self.stream, Pipe):
            if self.stream.proc.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.stream.proc.pid, signal.SIGKILL)
            self.stream.proc.kill()

    def break_off(self) -> None:
        """Close it in the middle, without waiting for a command that may never end."""
        self.kill()
        with contextlib.suppress(OSError):
            self.stream.close()


@dataclass
class Reading:
    """Which shard a reader has open; `close` breaks it off from another thread."""

    shard: Watched | None = None
    closed: bool = False

    def open(self, url: str) -> Watched:
        """The opened shard."""
        self.shard = None
        self.shard = Watched(_open(url))
        if self.closed:  # meanwhile
            self.shard.kill()
        return self.shard

    def break_off(self) -> None:
        """Close the shard in the middle."""
        if self.shard is not None:
            self.shard.break_off()

    def close(self) -> None:
        """End the command that gives the shard, if one does; no other is opened."""
        self.closed = True
        if self.shard is not None:
            self.shard.kill()


def _open(url: str) -> Any:
    """A shard as webdataset opens it; a command in a group of its own, with what it starts: a pipeline is several."""
    if not url.startswith(remote.PIPE):
        return gopen(url)
    return Pipe(
        url.removeprefix(remote.PIPE),
        mode="rb",
        shell=True,
        bufsize=PIPE_BYTES,
        ignore_status=[128 + signal.SIGPIPE],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def read_shards(shards: Iterable[dict[str, str]], reading: Reading | None = None) -> Iterator[dict[str, Any]]:
    """The samples of shards, as webdataset groups their files; one that fails gives an item that says why.

    After one that failed it waits, as sources/remote.py does, before it opens the next.

    Raises:
        BadImage: shard after shard fails.
    """
    failing: set[str] = set()  # since one could be read
    reading = reading or Reading()
    for url in (shard["url"] for shard in shards):
        if failing:
            waits = remote.RETRY_WAITS_SECONDS
            time.sleep(waits[min(len(failing), len(waits)) - 1])
        if reading.closed:
            return
        is_empty = True
        try:
            shard = reading.open(url)
            for sample in group_by_keys(shard_files(url, shard)):
                is_empty = False
                yield sample
            shard.close()
            if is_empty:
                raise ValueError("it holds no sample")
            failing.clear()
        except GeneratorExit:
            reading.break_off()
            raise
        except Exception as error:  # what Python's tarfile, a command or a file system says
            reading.break_off()
            reason = _reason(error)
            if url in failing or len(failing) >= MAX_FAILING_SHARDS:
                shards_failed = f"{len(failing):,} shards" if len(failing) > 1 else "the shard"
                raise BadImage(
                    f"cannot read {url}: {reason}; {shards_failed} before it could not be read either"
                ) from error
            failing.add(url)
            yield {FAILED: reason, "__url__": url}


def _reason(error: Exception) -> str:
    """What an error says, without the objects that webdataset adds to it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    said = [each for each in error.args[:1] if isinstance(each, str)]
    return said[0] if said else type(error).__name__


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
