"""Where every image of a split is stored: 16 bytes each, in a memory-mapped file.

`prepare` writes the index beside its shards. For other shards it is built when first needed, from the headers of
the tars, by one process of a machine while the others wait.

Legend: N images, L labels an image has at most.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from mixer_lightning.data.sources.cache import Cache
from mixer_lightning.data.sources.locks import log_progress, once_per_machine
from mixer_lightning.data.sources.names import IMAGE_SUFFIXES, PLUGINS, RASTER_FORMATS
from mixer_lightning.data.sources.remote import File, expand, find
from mixer_lightning.data.sources.samples import ROW, Samples, samples
from mixer_lightning.data.sources.tar import BLOCK
from mixer_lightning.files import atomic_write, write_text

log = logging.getLogger(__name__)

NUM_THREADS = 8  # they mostly wait for the file system


@dataclass(frozen=True)
class Index:
    """The images of a split."""

    rows: npt.NDArray[np.void]  # ROW [N]
    labels: npt.NDArray[np.int32] | None  # [N, L], short rows padded with -1; None where L is 1
    shards: list[tuple[str, int, int]]  # name, bytes and number of images of each

    @property
    def largest_label(self) -> int:
        """The largest class index."""
        return int(self.rows["label"].max() if self.labels is None else self.labels.max())


def read(folder: Path, split: str, shards: list[tuple[str, int, int]], labels_per_image: int) -> Index:
    """The index of `split` in `folder`.

    Raises:
        ValueError: a file of it is missing, damaged, of another size than the shards' numbers of images, or says what
            cannot be: a negative label, an image beyond the end of its shard.
    """
    count = sum(samples for _, _, samples in shards)
    path, labels_path = array_paths(folder, split)
    rows = _mapped(path, ROW, (count,))
    first = 0
    for shard, size, num_images in shards:
        own = rows[first : first + num_images]
        if len(own) and int((own["block"].astype(np.int64) * BLOCK + own["size"]).max()) > size:
            raise ValueError(f"{path} is damaged: it has an image beyond the end of {shard}")
        first += num_images
    if labels_per_image == 1:
        _refuse_negative(path, rows["label"], 0)
        return Index(rows, None, shards)
    labels = _mapped(labels_path, np.dtype("<i4"), (count, labels_per_image))
    _refuse_negative(labels_path, labels[:, 0], 0)
    _refuse_negative(labels_path, labels, -1)
    return Index(rows, labels, shards)


def array_paths(folder: Path, split: str) -> tuple[Path, Path]:
    """The files of an index: its rows, and its labels where images have several."""
    return folder / f"{split}-index.npy", folder / f"{split}-labels.npy"


def _refuse_negative(path: Path, labels: npt.NDArray[np.int32], least: int) -> None:
    if len(labels) and (found := int(labels.min())) < least:
        raise ValueError(f"{path} is damaged: it has the label {found}")


def _mapped(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(array, np.memmap) or array.dtype != dtype or array.shape != shape:
        raise ValueError(
            f"{path} holds {getattr(array, 'dtype', '?')} {array.shape}, expected {dtype} {shape}"
        )
    if path.stat().st_size != array.offset + array.nbytes:
        raise ValueError(
            f"{path} has {path.stat().st_size:,} bytes, expected {array.offset + array.nbytes:,}"
        )
    return np.asarray(array)


# ------------------------------------------------------------------------------- shards without an index


def find_shards(name: str, base: str, split: str, pattern: str | list[str] | None) -> list[File]:
    """The shards of a split with their sizes, none where there is no such split.

    Raises:
        FileNotFoundError: a pattern names shards that do not exist.
        ValueError: a pattern cannot be read, or a shard is named twice.
    """
    patterns = [f"{split}-*.tar"] if pattern is None else [pattern] if isinstance(pattern, str) else pattern
    try:
        addresses = [address for each in patterns for address in expand(each, base)]
    except ValueError as error:
        raise ValueError(f"{name}: data.{split}={pattern}: {error}") from error
    twice = [address for address, count in Counter(addresses).items() if count > 1]
    if twice:
        raise ValueError(f"{name}: data.{split}={pattern} names {twice[0]} more than once.")
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        files = list(pool.map(find, addresses))
    missing = [address for address, file in zip(addresses, files, strict=True) if file is None]
    if missing or (pattern is not None and not addresses):
        what = f"{missing[0]}, which does not exist" if missing else "no shards"
        more = f" (nor do {len(missing) - 1:,} more)" if len(missing) > 1 else ""
        raise FileNotFoundError(f"{name}: data.{split}={pattern} names {what}{more}.")
    return [file for file in files if file is not None]


def load_or_build(
    split: str,
    files: Sequence[File],
    classes: list[str] | None,
    *,
    name: str,
    folders: Sequence[Path],
    store: Cache,
) -> Index:
    """The index of shards that came without one: as stored in one of `folders`, or else built, and stored in the first.

    `split` is the stem of its files' names. It is rebuilt when a shard has changed, or the classes (labels may be
    written as their names).

    Raises:
        ValueError, OSError: a shard is damaged or cannot be read, or a sample is malformed; both are named.
    """
    fingerprint = _fingerprint(files, classes)
    if (index := _load(folders, split, fingerprint)) is not None:
        return index
    with once_per_machine(folders, f"{split}-index", fingerprint, name=name) as lock:
        if (index := _load(folders, split, fingerprint)) is not None:
            return index
        log.info("%s: reading the headers of %s %s shards, once", name, f"{len(files):,}", split)
        index = build(files, classes, name=name, store=store)
        try:
            if lock.folder is not None:
                _save(lock.folder, split, fingerprint, index)
                return (
                    _load([lock.folder], split, fingerprint) or index
                )  # memory-mapped, so that all processes share it
        except OSError as error:
            log.warning("%s: %s", name, error)
        places = " nor in ".join(map(str, folders))
        log.warning("%s: the index can be stored neither in %s; it is rebuilt each time", name, places)
        return index


def build(files: Sequence[File], classes: list[str] | None, *, name: str, store: Cache) -> Index:
    """Read the headers of all shards."""
    labels_of = {each: label for label, each in enumerate(classes or [])}

    def read_headers(file: File) -> tuple[Samples, int]:
        descriptor = store.open(file)
        try:
            return samples(descriptor, labels_of), os.fstat(descriptor).st_size
        except ValueError as error:
            raise ValueError(f"{name}: {file.address}: {error}") from error
        except OSError as error:
            raise OSError(f"{name}: cannot read {file.address}: {error.strerror}") from error
        finally:
            os.close(descriptor)

    with ThreadPoolExecutor(min(NUM_THREADS, store.max_open(files))) as pool:
        parts = list(log_progress(pool.map(read_headers, files), f"{name}: indexed", len(files)))
    for reason in dict.fromkeys(reason for found, _ in parts for reason in found.left_out):
        names = [name for found, _ in parts for name in found.left_out.get(reason, ())]
        log.warning("%s: %s %s are left out, such as %s", name, f"{len(names):,}", reason, names[0])
    empty = [file.address for file, (found, _) in zip(files, parts, strict=True) if not len(found.rows)]
    if 0 < len(empty) < len(files):
        log.warning("%s: %s shards hold no sample, such as %s", name, f"{len(empty):,}", empty[0])
    rows = np.concatenate([found.rows for found, _ in parts])
    if len(rows) == 0:
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        raise ValueError(f"{name}: no samples in {files[0].address}{more}.")
    width = max(found.labels.shape[1] for found, _ in parts)
    labels = None
    if width > 1:
        labels = np.concatenate(
            [
                np.pad(found.labels, ((0, 0), (0, width - found.labels.shape[1])), constant_values=-1)
                for found, _ in parts
            ]
        )
    shards = [(file.name, size, len(found.rows)) for file, (found, size) in zip(files, parts, strict=True)]
    return Index(rows, labels, shards)


def _load(folders: Iterable[Path], split: str, fingerprint: str) -> Index | None:
    for folder in folders:
        try:
            metadata = json.loads((folder / f"{split}-index.json").read_text(encoding="utf-8"))
            if metadata["fingerprint"] == fingerprint:
                shards = [(each["name"], each["bytes"], each["samples"]) for each in metadata["shards"]]
                return read(folder, split, shards, metadata["labels_per_image"])
        except (OSError, ValueError, KeyError, TypeError):  # absent, or written by something else
            continue
    return None


def _save(folder: Path, split: str, fingerprint: str, index: Index) -> None:
    def save(array: npt.NDArray[Any], file: BinaryIO) -> None:
        np.save(file, array, allow_pickle=False)

    path, labels_path = array_paths(folder, split)
    atomic_write(path, partial(save, index.rows))
    if index.labels is not None:
        atomic_write(labels_path, partial(save, index.labels))
    metadata = {
        "fingerprint": fingerprint,
        "labels_per_image": 1 if index.labels is None else index.labels.shape[1],
        "shards": [{"name": name, "bytes": size, "samples": count} for name, size, count in index.shards],
    }
    write_text(folder / f"{split}-index.json", json.dumps(metadata))


def _fingerprint(files: Sequence[File], classes: list[str] | None) -> str:
    """Changes with any shard's name, size or time, the classes, and the formats read; not with the shards' folder."""
    states = [(file.name, file.bytes, file.version) for file in files]
    plugins = [form for form in PLUGINS if RASTER_FORMATS[form][0] in IMAGE_SUFFIXES]
    return hashlib.sha256(json.dumps(["index 3", states, classes, *plugins]).encode()).hexdigest()
