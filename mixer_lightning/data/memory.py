"""A split of small images of one size, decoded once and kept as pixels."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np

from mixer_lightning.data import decode
from mixer_lightning.data.sources import Images, StorageError
from mixer_lightning.data.sources.arrays import Arrays

IMAGES_PER_TASK = 32  # that a thread decodes at a time
#: A split whose images are of one size is decoded once, if its pixels need no more than this.
MAX_BYTES_IN_MEMORY = 2**30


class BadImages(Protocol):
    """Where bad images are recorded: `BadImages` of data/loader.py."""

    def count_read(self, read: int) -> None:
        """`read` more images have been read."""

    def add(self, index: int, reason: str) -> None:
        """Record a bad image; BadImage where it is one too many."""


def load_into_memory(
    images: Images, bad: BadImages, threads: ThreadPoolExecutor, *, exif_orientation: bool = False
) -> Arrays | None:
    """All images decoded, if they are of one size and small enough together (a property of the data set alone).

    None if not, which the headers tell: nothing is decoded before its size is known to fit. Bad images are recorded in
    `bad`; black ones stand for them and are never used. With `exif_orientation` they are turned as their metadata say.
    """
    if isinstance(images, Arrays):
        return images
    known = _first_readable(images, exif_orientation=exif_orientation)
    if known is None or 3 * known.size[0] * known.size[1] * len(images) > MAX_BYTES_IN_MEMORY:
        return None
    width, height = known.size
    pixels = np.zeros((len(images), height, width, 3), np.uint8)  # takes memory where it is written to
    is_mixed = threading.Event()

    def decode_some(first: int) -> tuple[int, dict[int, str]]:
        """Number of images looked at, and the reasons of the bad ones."""
        reasons: dict[int, str] = {}
        indices = range(first, min(first + IMAGES_PER_TASK, len(images)))
        for index in indices:
            if is_mixed.is_set():
                break
            if index < known.at:
                reasons[index] = known.reasons[index]
                continue
            try:
                encoded = known.encoded if index == known.at else images.read(index)
                turn = _turn(encoded, exif_orientation)
                if decode.seen_size(encoded, turn) != known.size:
                    is_mixed.set()
                    break
                image = decode.turned(decode.pixels(encoded), turn)
            except StorageError:
                raise
            except (OSError, ValueError, MemoryError) as error:
                reasons[index] = decode.reason(error)
                continue
            if image.shape[1:] != (height, width):  # the header was wrong
                is_mixed.set()
                break
            pixels[index] = image.permute(1, 2, 0).numpy()
        return len(indices), reasons

    starts = deque(range(0, len(images), IMAGES_PER_TASK))
    work: deque[Future[tuple[int, dict[int, str]]]] = deque()
    while (starts or work) and not is_mixed.is_set():
        while (
            starts and len(work) < 8
        ):  # few, since most data sets have images of many sizes, which shows at once
            work.append(threads.submit(decode_some, starts.popleft()))
        read, reasons = work.popleft().result()
        bad.count_read(read)
        for index, reason in reasons.items():
            bad.add(index, reason)
    if is_mixed.is_set():
        for future in work:
            future.cancel()
        return None
    return Arrays("", pixels, images.labels(np.arange(len(images))))


class _First(NamedTuple):
    """The first image of a split whose header can be read, and why none of those before it can."""

    at: int
    encoded: Any
    size: tuple[int, int]
    reasons: list[str]


def _first_readable(images: Images, *, exif_orientation: bool) -> _First | None:
    reasons: list[str] = []
    for index in range(len(images)):
        try:
            encoded = images.read(index)
            return _First(
                index, encoded, decode.seen_size(encoded, _turn(encoded, exif_orientation)), reasons
            )
        except StorageError:
            raise
        except (OSError, ValueError, MemoryError) as error:
            reasons.append(decode.reason(error))
    return None


def _turn(encoded: Any, exif_orientation: bool) -> int:
    return decode.orientation(encoded) if exif_orientation else decode.UPRIGHT
