"""Batches of a split: read, decoded, cropped and resized by threads of this process.

Threads fill the batch that they share, so nothing is copied between processes, and decoding and resizing release the
GIL. Images of one size that fit in memory are kept there as pixels; small ones are cropped on the device.

Legend: D images of a batch, H x W pixels of a whole image, S side of the model's input in pixels.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from mixer_lightning.data import decode
from mixer_lightning.data.crops import Crops, Integers, crop_batch
from mixer_lightning.data.memory import load_into_memory
from mixer_lightning.data.sources import BadImage, Images, StorageError, Streamed
from mixer_lightning.data.sources.arrays import Arrays
from mixer_lightning.data.stateless_random import derive_seed, sample_keys

if TYPE_CHECKING:
    from mixer_lightning.data.order import Samples
    from mixer_lightning.data.stateless_random import Keys
    from mixer_lightning.data.transforms import Augment, AugmentParams

log = logging.getLogger(__name__)

IMAGES_PER_TASK = 8  # that a thread decodes, crops and resizes at a time
#: Larger images in memory are cropped one by one, which a CPU does faster.
MAX_PIXELS_CROPPED_ON_DEVICE = 96 * 96
MAX_BAD_IMAGES_NAMED = 20  # in the log; more are counted
#: The fraction of bad images is one of at least this many, or of the whole split.
MIN_IMAGES_OF_BAD_FRACTION = 1000
#: However small the split, but a tenth of it at most, and none where no fraction is allowed.
TOLERATED_BAD_IMAGES = 10
LARGEST_BAD_FRACTION = 0.99  # that is advised: 1 is none that a recipe takes


class Batch(NamedTuple):
    """What a loader yields."""

    images: Tensor  # uint8 [D, 3, S, S]; with `crops`, whole images [D, 3, H, W] still to be cropped
    labels: Tensor  # int64 [D], or [D, L] where images have several (padded with -1)
    crops: Crops | None = None
    params: AugmentParams | None = None  # of training batches

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on a device; crops and params stay on the CPU, where they are read."""
        images, labels = (tensor.to(device, non_blocking=True) for tensor in self[:2])
        return self._replace(images=images, labels=labels)

    def cropped(self, image_size: int) -> Tensor:
        """The images as the model's input, uint8 [D, 3, S, S], on their device."""
        return self.images if self.crops is None else crop_batch(self.images, self.crops, image_size)


class Plan(Protocol):
    """The samples [D, 3] of every batch; can be iterated over repeatedly."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Samples]: ...


class Loader:
    """Batches of `images` in the order of `plan`.

    With a `seed`, training: random crops, params sampled by `augment`, and a bad image is replaced by another, the same
    one on every process and in every run, as long as no more than `max_bad_fraction` of the images read are bad.
    Without, evaluation: the crop of evaluation, and a bad image raises BadImage, since a metric without it would be
    that of another data set; but with `mark_bad` it is black, and its label -1.

    `ahead` batches are prefetched while one is used. With 0, all threads work on the batch that is waited for, and are
    idle while it is used: right where the same cores train.

    `on_bad` is called with `images`, the index and the reason of each bad image, by any thread, before that is raised.

    With `keep_in_memory`, images of one size that fit there are decoded once, before the first batch.

    With `decode_on`, a GPU decodes and resizes, and batches are made there, each by one thread.
    """

    def __init__(
        self,
        images: Images,
        plan: Plan,
        augment: Augment,
        *,
        image_size: int,
        seed: int | None,
        threads: int,
        ahead: int,
        pin_memory: bool,
        max_bad_fraction: float = 0.0,
        mark_bad: bool = False,
        on_bad: Callable[[Images, int, str], object] | None = None,
        keep_in_memory: bool = True,
        decode_on: torch.device | None = None,
    ) -> None:
        assert not mark_bad or seed is None
        self.decode_on = decode_on
        self._stream = None if decode_on is None else torch.cuda.Stream(decode_on)  # type: ignore[no-untyped-call]
        self.plan, self.augment, self.image_size, self.seed = plan, augment, image_size, seed
        self.ahead, self.pin_memory = ahead, pin_memory
        self.mark_bad = mark_bad
        self.bad = BadImages(
            images,
            max_fraction=math.inf if mark_bad else None if seed is None else max_bad_fraction,
            on_bad=on_bad,
        )
        self.waiting_since: float | None = None  # for a batch, by time.monotonic()
        self.seconds_waited = 0.0  # for all batches so far
        self._pool = decoding_threads(threads)
        kept = (
            load_into_memory(images, self.bad, self._pool, exif_orientation=augment.exif_orientation)
            if keep_in_memory
            else None
        )
        self.images = kept or images

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[Batch]:
        waiting: deque[Callable[[], Batch]] = deque()
        for samples in self.plan:
            waiting.append(self._submit(samples))
            if len(waiting) > self.ahead:
                yield self._wait_for(waiting.popleft())
        while waiting:
            yield self._wait_for(waiting.popleft())

    def _wait_for(self, batch: Callable[[], Batch]) -> Batch:
        since = self.waiting_since = time.monotonic()
        try:
            return batch()
        finally:
            self.waiting_since = None
            self.seconds_waited += time.monotonic() - since

    def close(self) -> None:
        """End the threads, each after its image; one whose read does not come back is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    # ---------------------------------------------------------------------------------------- one batch

    def _submit(self, samples: Samples) -> Callable[[], Batch]:
        """Give the threads a batch to make; calling the result waits for it."""
        keys = None if self.seed is None else sample_keys(self.seed, samples)
        indices = samples[:, 1]
        if (
            isinstance(self.images, Arrays)
            and self.images.pixels[0, :, :, 0].size <= MAX_PIXELS_CROPPED_ON_DEVICE
        ):
            return self._pool.submit(self._batch_from_memory, self.images, indices, keys).result
        size = self.image_size
        if self.decode_on is not None:
            future = self._pool.submit(self._decode_on_gpu, indices, keys)
            return lambda: self._from_gpu(future.result())
        with torch.inference_mode(False):  # else other threads could not write to it
            out = torch.empty(len(indices), 3, size, size, dtype=torch.uint8, pin_memory=self.pin_memory)
        parts = [slice(i, i + IMAGES_PER_TASK) for i in range(0, len(indices), IMAGES_PER_TASK)]
        tasks = [
            self._pool.submit(self._fill, indices[part], None if keys is None else keys[part], out[part])
            for part in parts
        ]
        params = None if keys is None else self.augment.sample_params(keys)
        return lambda: Batch(out, self._labels([task.result() for task in tasks]), params=params)

    def _batch_from_memory(self, images: Arrays, indices: Integers, keys: Keys | None) -> Batch:
        """A batch of images in memory."""
        if not self.mark_bad:
            indices = self.bad.substitute(indices)
        pixels = torch.from_numpy(images.pixels[indices]).permute(0, 3, 1, 2)  # [D, 3, H, W]
        height, width = (np.full(len(indices), extent) for extent in pixels.shape[-2:])
        return Batch(
            pixels.pin_memory() if self.pin_memory else pixels,
            self._labels(
                [self._labels_with_bad_marked(indices) if self.mark_bad else images.labels(indices)]
            ),
            crops=self._crops(keys, width, height),
            params=None if keys is None else self.augment.sample_params(keys),
        )

    def _decode_on_gpu(self, indices: Integers, keys: Keys | None) -> Batch:
        """A batch decoded by the GPU, in a stream of its own; complete when this returns."""
        assert self._stream is not None
        with torch.cuda.stream(self._stream):
            size = self.image_size
            out = torch.empty(len(indices), 3, size, size, dtype=torch.uint8, device=self.decode_on)
            labels = self._fill(indices, keys, out)
            self._stream.synchronize()  # waits in this thread, not in the one that trains
        params = None if keys is None else self.augment.sample_params(keys)
        return Batch(out, self._labels([labels]), params=params)

    def _from_gpu(self, batch: Batch) -> Batch:
        """Keep the batch's memory until the stream that trains has used it."""
        batch.images.record_stream(torch.cuda.current_stream(self.decode_on))
        return batch

    def _fill(self, indices: Integers, keys: Keys | None, out: Tensor) -> Integers:
        """Write the crops of some images to `out`; return their labels."""
        if self.mark_bad:
            for position, reason in self._write(indices, None, list(out)):
                self.bad.add(int(indices[position]), reason)
                out[position].zero_()
            return self._labels_with_bad_marked(indices)
        chosen = self.bad.substitute(indices)
        todo = np.arange(len(indices))
        while len(todo):
            keys_todo = None if keys is None else keys[todo]
            failed = self._write(chosen[todo], keys_todo, [out[i] for i in todo])
            todo = todo[[position for position, _ in failed]]
            for i, (_, reason) in zip(todo, failed, strict=True):
                self.bad.add(int(chosen[i]), reason)
            chosen[todo] = self.bad.substitute(indices[todo])
        self.bad.count_read(len(indices))
        return self.bad.images.labels(chosen)

    def _labels_with_bad_marked(self, indices: Integers) -> Integers:
        """Class indices, -1 for images that are known to be bad."""
        labels = self.bad.images.labels(indices)
        labels[[int(index) in self.bad.reasons for index in indices]] = -1
        return labels

    def _write(self, indices: Integers, keys: Keys | None, out: list[Tensor]) -> list[tuple[int, str]]:
        """Write the crops of images to `out`; positions of those that failed, and why."""
        encoded: list[Any] = []
        failed: list[tuple[int, str]] = []  # that cannot be read
        for position, index in enumerate(indices):
            try:
                encoded.append(self.images.read(int(index)))
            except StorageError:
                raise
            except (OSError, ValueError, MemoryError) as error:
                failed.append((position, decode.reason(error)))
        unread = {position for position, _ in failed}
        left = np.array([i for i in range(len(indices)) if i not in unread], dtype=np.int64)
        bad = self._decode(encoded, None if keys is None else keys[left], [out[i] for i in left])
        return failed + [(int(left[position]), reason) for position, reason in bad]

    def _decode(self, encoded: list[Any], keys: Keys | None, out: list[Tensor]) -> list[tuple[int, str]]:
        """Write the crops of encoded images to `out`; positions of those that failed, and why."""

        def crops_of(positions: Integers, widths: Integers, heights: Integers) -> Crops:
            return self._crops(None if keys is None else keys[positions], widths, heights)

        return decode.decode_crops(
            encoded, crops_of, out, exif_orientation=self.augment.exif_orientation, device=self.decode_on
        )

    def _crops(self, keys: Keys | None, widths: Integers, heights: Integers) -> Crops:
        if keys is None:
            return self.augment.eval_crops(widths, heights, self.image_size)
        return self.augment.train_crops(keys, widths, heights, self.image_size)

    def _labels(self, parts: list[Integers]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts))


class BadImages:
    """The images of a split that turned out to be bad, and the ones used in their place.

    `max_fraction` of the images read may be bad, or a few of a small split; None for none, with BadImage at once;
    math.inf for all, which are then marked and not replaced.
    """

    def __init__(
        self,
        images: Images,
        *,
        max_fraction: float | None,
        on_bad: Callable[[Images, int, str], object] | None = None,
    ) -> None:
        self.images, self.max_fraction, self.on_bad = images, max_fraction, on_bad
        # bad samples of a stream are counted over all its epochs, whose length says nothing about the set
        self._size = sys.maxsize if isinstance(images, Streamed) else len(images)
        self.reasons: dict[int, str] = {}
        self._read = 0
        self._lock = threading.Lock()

    def count_read(self, read: int) -> None:
        """`read` more images have been read."""
        with self._lock:
            self._read += read

    def substitute(self, indices: Integers) -> Integers:
        """A copy of `indices` with another image in place of each known to be bad."""
        if not self.reasons:
            return indices.copy()
        return np.array(
            [self._substitute(int(i)) if int(i) in self.reasons else i for i in indices], dtype=np.int64
        )

    def add(self, index: int, reason: str) -> None:
        """Record a bad image.

        Raises:
            BadImage: no bad image is allowed, or fewer.
        """
        with self._lock:
            if index not in self.reasons:
                self._add(index, reason)

    def _add(self, index: int, reason: str) -> None:
        if self.on_bad is not None:
            self.on_bad(self.images, index, reason)
        what = f"cannot read {self.images.name(index)}: {reason}"
        if self.max_fraction is None:
            raise BadImage(
                f"{what}. In evaluation each image counts: put a good file in its place, or remove it"
            )
        self.reasons[index] = reason
        bad, read = len(self.reasons), min(max(self._read, MIN_IMAGES_OF_BAD_FRACTION), self._size)
        if bad > max(self.max_fraction * read, self._tolerated()):
            raise BadImage(
                f"{what}. It is bad image number {bad:,} of {read:,}, more than "
                f"max_bad_fraction={self.max_fraction:g} allows: put good files in place of the images named so far, "
                f"remove them, or allow more, such as max_bad_fraction={_rounded_up(2 * bad / read)}"
            )
        if bad <= MAX_BAD_IMAGES_NAMED:
            log.warning(
                "%s%s", what, "" if self.max_fraction == math.inf else "; another image is used instead"
            )
        elif bad == MAX_BAD_IMAGES_NAMED + 1 or bad & (bad - 1) == 0:
            log.warning("%s bad images so far; from here on they are counted, not named", f"{bad:,}")

    def _tolerated(self) -> int:
        """Bad images that stop no run, however small the fraction that is allowed, unless that is none."""
        return min(TOLERATED_BAD_IMAGES, max(1, self._size // 10)) if self.max_fraction else 0

    def _substitute(self, index: int) -> int:
        """The first good one of a list that depends on `index` alone, so all processes and sessions agree."""
        for attempt in range(1000):
            other = derive_seed("spare", index, attempt) % len(self.images)
            if other not in self.reasons:
                return other
        raise BadImage(f"no good image was found to replace {self.images.name(index)}")


def _rounded_up(fraction: float) -> str:
    """One digit, not less, below 1: .0012 -> 0.002."""
    digits = 10.0 ** math.floor(math.log10(fraction))
    return f"{min(math.ceil(fraction / digits - 1e-9) * digits, LARGEST_BAD_FRACTION):g}"


def decoding_threads(threads: int) -> ThreadPoolExecutor:
    """A pool of threads in each of which torch runs single-threaded; all other threads keep torch's number."""
    usual = torch.get_num_threads()
    ready = threading.Barrier(threads + 1)

    def set_up() -> None:
        torch.get_num_threads()  # at its first call into torch a thread sets itself to the usual number
        torch.set_num_threads(1)
        ready.wait()

    executor = ThreadPoolExecutor(threads, thread_name_prefix="decode", initializer=set_up)
    try:
        for _ in range(threads):
            executor.submit(int)
        ready.wait()
    except BaseException:  # such as when no more threads can be started: the others would wait forever
        ready.abort()
        raise
    # torch.set_num_threads holds for the calling thread and for threads started later
    torch.set_num_threads(usual)
    return executor
