"""Shards that grow side by side: what a sample looks like in a tar, and how shards survive a killed process.

A sample's bytes are those that webdataset's TarWriter would write. Samples wait in memory and are appended
many at a time, so hundreds of shards need neither an open file each nor memory that grows. Only a prefix of a
file counts as written, the length that the journal names: everything behind it is cut off when a killed
process starts again.

Legend: N samples of a split, L labels an image has at most.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from mixer_lightning.data.sources.names import numbered
from mixer_lightning.data.sources.samples import ROW
from mixer_lightning.data.sources.tar import BLOCK, end_of_tar, file_header, padding
from mixer_lightning.data.stateless_random import hash32
from mixer_lightning.files import atomic_write, fsync


class Entry(NamedTuple):
    """A sample on its way into a shard."""

    key: str  # of names.tar_key
    encoded: bytes
    suffix: str
    labels: tuple[int, ...]


class Written(NamedTuple):
    """A finished shard."""

    name: str
    bytes: int
    samples: int
    sha256: str


def row_type(labels_per_image: int) -> np.dtype[np.void]:
    """A row of the index with all labels of the image: what is kept beside a shard while it grows."""
    return np.dtype([*ROW.descr, ("labels", "<i4", (labels_per_image,))])


class Shard:
    """One shard that grows: its tar, and the rows of its index in a file next to it."""

    def __init__(self, path: Path, labels_per_image: int, *, numbers_keys: bool = True) -> None:
        self.path = path
        self.numbers_keys = numbers_keys  # not in a part of a set: others may have the key before it
        self.rows_path = path.with_suffix(".rows")
        self.num_bytes = 0  # written; a committed shard's are in the journal
        self.samples = 0
        self._row_type = row_type(labels_per_image)
        self._digest = hashlib.sha256()
        self._waiting: list[Entry] = []
        self._unsynced = False
        self._finished: Written | None = None

    def add(self, entry: Entry) -> None:
        """Let a sample wait to be written."""
        self._waiting.append(entry)

    def write(self) -> None:
        """Append what waits; touches no other shard, so that shards can be written side by side."""
        if not self._waiting:
            return
        hashes = np.array([hash32(entry.key) for entry in self._waiting], dtype=np.uint32)
        keys = self._new_keys(hashes)
        rows = np.zeros(len(keys), self._row_type)
        rows["labels"], rows["hash"] = -1, hashes
        with self.path.open("ab") as file:
            for i, (key, entry) in enumerate(zip(keys, self._waiting, strict=True)):
                for name, content in self._members(key, entry):
                    start = file_header(name, len(content))
                    if content is entry.encoded:
                        rows[i]["block"] = (self.num_bytes + len(start)) // BLOCK
                    for piece in (start, content, bytes(padding(len(content)))):
                        file.write(piece)
                        self._digest.update(piece)
                        self.num_bytes += len(piece)
                rows[i]["size"], rows[i]["label"] = len(entry.encoded), entry.labels[0]
                rows[i]["labels"][: len(entry.labels)] = entry.labels
        with self.rows_path.open("ab") as file:
            file.write(rows.tobytes())
        self.samples += len(rows)
        self._waiting.clear()
        self._unsynced = True

    def sync(self) -> None:
        """Wait until the disk has what was written (fsync)."""
        if self._unsynced:
            for path in (self.path, self.rows_path):
                with path.open("rb") as file:
                    fsync(file.fileno())
            self._unsynced = False

    def restore(self, num_bytes: int, samples: int, *, finished: bool) -> None:
        """Cut the files back to what was committed; a `finished` tar has been moved away already.

        Raises:
            ValueError: they hold less than that.
        """
        self.num_bytes, self.samples = num_bytes, samples
        lengths = {self.path: num_bytes, self.rows_path: self.num_row_bytes}
        if finished:
            del lengths[self.path]
        for path, length in lengths.items():
            found = path.stat().st_size if path.exists() else 0
            if found < length:
                raise ValueError(
                    f"{path} has {found:,} bytes, but {length:,} were written: delete {path.parent} to start anew"
                )
            if length:
                os.truncate(path, length)
            else:
                path.unlink(missing_ok=True)
        if num_bytes and not finished:
            self._digest = _digest_of(self.path)

    def finish(self, path: Path) -> Written:
        """End the tar as tar programs do, and give it its name; what a killed process had finished is read again."""
        if self._finished is not None:
            return self._finished
        if path.exists():
            digest, num_bytes = _digest_of(path), path.stat().st_size
        else:
            end = end_of_tar(self.num_bytes)
            with self.path.open("ab") as file:
                file.write(end)
                file.flush()
                fsync(file.fileno())
            self.path.rename(path)
            self._digest.update(end)
            digest, num_bytes = self._digest, self.num_bytes + len(end)
        self._finished = Written(path.name, num_bytes, self.samples, digest.hexdigest())
        return self._finished

    @property
    def num_row_bytes(self) -> int:
        """Of the file of rows."""
        return self.samples * self._row_type.itemsize

    def rows(self) -> npt.NDArray[Any]:
        """The rows written so far."""
        return np.fromfile(self.rows_path, self._row_type) if self.samples else np.zeros(0, self._row_type)

    def _members(self, key: str, entry: Entry) -> list[tuple[str, bytes]]:
        """Names and contents of a sample's files, in the order of their names."""
        labels = ", ".join(map(str, entry.labels))
        if self._row_type["labels"].shape == (1,):
            note = ("cls", labels.encode())
        else:
            note = ("json", f'{{"label": {entry.labels[0]}, "labels": [{labels}]}}'.encode())
        return [(f"{key}.{suffix}", data) for suffix, data in sorted([(entry.suffix, entry.encoded), note])]

    def _new_keys(self, hashes: npt.NDArray[np.uint32]) -> list[str]:
        """The keys that wait, numbered where the shard has their hash already: readers tell samples by them."""
        keys = [entry.key for entry in self._waiting]
        if not self.numbers_keys:
            return keys
        before = self.rows()["hash"]
        again = np.isin(before, hashes)
        if len(np.unique(hashes)) == len(hashes) and not again.any():
            return keys
        times = Counter(before[again].tolist())
        for i, found in enumerate(hashes.tolist()):
            times[found] += 1
            keys[i] = numbered(keys[i], times[found])
        return keys


def write_index(path: Path, shards: Iterable[Shard], *, labels_path: Path | None) -> None:
    """<split>-index.npy [N], and <split>-labels.npy [N, L] where there is a path for it, from the rows of shards."""
    shards = list(shards)
    num_samples = sum(shard.samples for shard in shards)

    def write(file: BinaryIO) -> None:
        _start_npy(file, ROW, (num_samples,))
        for shard in shards:
            rows = shard.rows()
            own = np.zeros(len(rows), ROW)
            for field in ROW.names or ():
                own[field] = rows[field]
            file.write(own.tobytes())

    def write_labels(file: BinaryIO) -> None:
        width = shards[0].rows()["labels"].shape[1] if shards else 1
        _start_npy(file, np.dtype("<i4"), (num_samples, width))
        for shard in shards:
            file.write(np.ascontiguousarray(shard.rows()["labels"]).tobytes())

    atomic_write(path, write)
    if labels_path is not None:
        atomic_write(labels_path, write_labels)


def _start_npy(file: BinaryIO, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(
        file, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    )


def _digest_of(path: Path) -> Any:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256")
