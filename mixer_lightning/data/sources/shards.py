"""WebDataset shards (tar files), local or remote, with random access through an index.

webdataset itself streams, and cannot resume or order samples independently of the number of readers; it also
accepts a shard that was truncated between two files as complete. Here an index says where every image is. Reading one
is a single `pread`, in any order, from any number of threads; remote shards are fetched whole, into a cache.

Legend: N images of a split, B images asked for, L labels an image has at most.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mixer_lightning.data.sources import Dataset, Images, StorageError, prepared, remote
from mixer_lightning.data.sources.cache import Cache
from mixer_lightning.data.sources.index import Index, find_shards, load_or_build
from mixer_lightning.data.sources.names import too_sparse, unnumbered
from mixer_lightning.data.sources.prepare_defaults import prepare_command
from mixer_lightning.data.sources.prepared import Verify
from mixer_lightning.data.sources.remote import File
from mixer_lightning.data.sources.samples import split_name
from mixer_lightning.data.sources.tar import BLOCK, Member, after, members
from mixer_lightning.data.stateless_random import hash32
from mixer_lightning.files import cache_home, readable
from mixer_lightning.ranges import PositiveInt, check_ranges

if TYPE_CHECKING:
    from mixer_lightning.data.sources import Indices


@check_ranges
def shards(
    *,
    root: str,
    name: str = "shards",
    num_classes: PositiveInt | None = None,
    train: str | list[str] | None = None,
    val: str | list[str] | None = None,
    test: str | list[str] | None = None,
    verify: Verify = "size",
    cache: str | None = None,
    cache_bytes: PositiveInt = 200_000_000_000,
) -> Dataset:
    """Samples in the shards that `<root>/dataset.json` lists (`prepare` writes it), else in `<root>/<split>-*.tar`.

    `root` is a folder or a URL that fsspec reads (https://, s3://, ...; credentials come from the environment).
    `train`, `val`, `test` name the shards of a split explicitly: patterns with {000..009}, {a,b} or *, relative to
    root, or paths, URLs, commands (`pipe:curl -s https://host/x-{000..009}.tar`); or lists of these.

    A sample is a run of files in a shard that share their name up to the first dot: one image (of any format of
    names.py; of several the one that is a jpg, jpeg, png or webp) and its labels, in a `.cls` file (a class index, or a
    class name of dataset.json) or a `.json` file ({"label": 1} or {"labels": [1, 5]}). The classes are {"classes":
    ["name of class 0", ...]} in dataset.json; without it their names are their indices. `num_classes` is the size of
    the head, where it is to exceed the number of classes that are named or found.

    Shards of `prepare` must have the sizes of dataset.json and, with verify="full", also the sha256, and the index must
    be theirs, label by label; remote shards are checked when they are fetched, and their index by its sha256. For
    others an index is built when first needed, and stored in `<root>/<split>-index.*` or under `cache`; it is rebuilt
    when a shard changes in size or time.

    `cache` (default ~/.cache/mixer_lightning) keeps copies of remote shards, at most `cache_bytes`.

    Raises FileNotFoundError, OSError or ValueError naming the folder, or the shard and sample, and what is wrong.
    """
    patterns = {"train": train, "val": val, "test": test}
    return open_shards(
        root=root,
        name=name,
        num_classes=num_classes,
        patterns=patterns,
        verify=verify,
        cache=cache,
        cache_bytes=cache_bytes,
    )


def open_shards(
    *,
    root: str,
    name: str,
    num_classes: int | None,
    patterns: Mapping[str, str | list[str] | None],
    verify: Verify,
    cache: str | None,
    cache_bytes: int,
    classes: list[str] | None = None,
) -> Dataset:
    """`shards` with those splits alone that `patterns` has; `classes` names the classes where dataset.json does not."""
    if root.startswith(remote.PIPE):
        raise ValueError(
            f"{name}: a command gives shards, no folder: set data.train='{root}' instead of data.root."
        )
    base = remote.absolute(root)
    home = Path(cache).expanduser().absolute() if cache else cache_home()
    own = home / "indexes" / _short(base)  # for what cannot be stored under root
    store = Cache(home / "shards", max_bytes=cache_bytes)
    about = prepared.describe(name, base, verify=verify)
    if about.classes is None and classes is not None:
        about = replace(about, classes=classes)
    described = {
        split: about.splits[split] for split in about.splits if split in patterns and patterns[split] is None
    }
    if verify == "full" and (not described or any(pattern is not None for pattern in patterns.values())):
        raise ValueError(
            f"{name}: verify=full needs the checksums that prepare writes into {base}/dataset.json."
        )
    states = prepared.check_sizes(name, base, described, about.command)
    indexes = {split: prepared.index_of(name, base, split, about, own, verify=verify) for split in described}
    if verify == "full":
        both = {split: (described[split], indexes[split]) for split in described}
        prepared.check_contents(
            name, base, both, states, about.classes, store=store, folder=own, again=about.command
        )

    splits: dict[str, Images] = {}
    largest = -1  # label of all splits
    for split, pattern in patterns.items():
        if split in described:
            index = indexes[split]
            splits[split] = ShardImages(described[split].files, index, store)
            largest = max(largest, index.largest_label)
            continue
        files = [] if about.splits and pattern is None else find_shards(name, base, split, pattern)
        if files:
            folders = [Path(base), own] if Path(base).is_dir() else [own]
            stem = split if pattern is None else f"{split}-{_short(json.dumps(pattern))}"
            index = load_or_build(stem, files, about.classes, name=name, folders=folders, store=store)
            sizes = [size for _, size, _ in index.shards]
            files = [replace(file, bytes=size) for file, size in zip(files, sizes, strict=True)]
            splits[split] = ShardImages(files, index, store)
            largest = max(largest, index.largest_label)
    if not splits:
        raise _missing(name, base)
    if about.classes is None and num_classes is None:
        _refuse_ids(name, base, largest, sum(map(len, splits.values())))
    names = _classes(name, base, about.classes, largest, num_classes)
    return Dataset(name, names, splits, about.label_changes_with)


class ShardImages:
    """The images of one split; safe to read from several threads."""

    def __init__(self, files: Sequence[File], index: Index, store: Cache) -> None:
        self._files, self._store = files, store
        self._block, self._size, self._hash = (index.rows[field] for field in ("block", "size", "hash"))
        self._labels = index.rows["label"] if index.labels is None else index.labels
        self._ends = list(accumulate(samples for _, _, samples in index.shards))
        self._max_open = store.max_open(files)
        self._open: OrderedDict[int, _Descriptor] = OrderedDict()  # the latest used last
        self._lock = threading.Lock()  # of the line above
        self._listed: tuple[int, dict[tuple[int, int], Member]] = (
            -1,
            {},
        )  # the files of the shard listed last

    def __len__(self) -> int:
        return len(self._size)

    @property
    def is_remote(self) -> bool:
        """Whether reading fetches shards."""
        return any(remote.is_remote(file.address) for file in self._files)

    def remote_bytes(self) -> tuple[int, int]:
        """Size of the shards that have to be fetched, and of the cache that keeps them; 0 where a size is not known."""
        sizes = [file.bytes or 0 for file in self._files if file.is_remote]
        return sum(sizes), self._store.max_bytes

    def labels(self, indices: Indices) -> npt.NDArray[np.int64]:
        """Class indices [B], or [B, L] padded with -1."""
        return self._labels[indices].astype(np.int64)

    def read(self, index: int) -> bytes:
        """The image's file.

        Raises:
            StorageError: its shard cannot be fetched or read, or has become shorter.
        """
        shard, offset, size = self._place(index)
        address = self._files[shard].address
        try:
            data = self._descriptor(shard).read(size, offset)
        except (OSError, ValueError) as error:
            said = str(error)
            raise StorageError(said if address in said else f"{address} cannot be read: {said}") from error
        if len(data) < size:
            raise StorageError(
                f"{address} ends after {len(data):,} of the {size:,} bytes at byte {offset:,}: it has become shorter. "
                "Put the whole file back"
            )
        return data

    def key(self, index: int) -> str:
        """The name of the sample's files in their shard, up to the first dot."""
        return readable(split_name(self._member(index).name)[0])

    def name(self, index: int) -> str:
        """The shard, the file's name inside and where it starts."""
        shard, offset, _ = self._place(index)
        member = "?"
        if self._store.has(self._files[shard]):  # a message is not worth fetching it
            with contextlib.suppress(OSError, ValueError):
                member = self._member(index).name
        return readable(f"{self._files[shard].address}: {member} (at byte {offset:,})")

    def mark(self, index: int) -> int:
        """The image's size in bytes, of the index."""
        return int(self._size[index])

    def shard_sizes(self) -> list[int]:
        """Numbers of images in each shard."""
        return [end - begin for begin, end in zip([0, *self._ends], self._ends, strict=False)]

    def prefetch(self, shards: Sequence[int]) -> None:
        """These shards are read next: remote ones are fetched in the background, in this order."""
        self._store.prefetch([self._files[shard] for shard in shards], of=self)

    def hashes(self) -> npt.NDArray[np.uint32]:
        """`stateless_random.hash32` of every image's key, without a number of `names.numbered`, [N]."""
        return np.array(self._hash)

    def _place(self, index: int) -> tuple[int, int, int]:
        """Shard, first byte there, size in bytes."""
        return bisect_right(self._ends, index), int(self._block[index]) * BLOCK, int(self._size[index])

    def _member(self, index: int) -> Member:
        """The file's tar header, searched from the end of the image before it; a link's among all of its shard."""
        shard, offset, _ = self._place(index)
        start = 0
        if index > 0 and bisect_right(self._ends, index - 1) == shard:
            start = after(*self._place(index - 1)[1:])
        descriptor, wanted = self._descriptor(shard), (offset, int(self._hash[index]))
        for member in members(descriptor.number, start=start, links=False) if start <= offset else ():
            if _identity(member) == wanted:
                return member
            if member.offset >= offset:
                break
        listed_shard, listed = self._listed
        if listed_shard != shard:
            listed = {_identity(member): member for member in members(descriptor.number)}
            self._listed = (shard, listed)
        if wanted in listed:
            return listed[wanted]
        raise ValueError(f"{self._files[shard].address} has no file at byte {offset:,}")

    def _descriptor(self, shard: int) -> _Descriptor:
        """The open shard, shared by threads."""
        with self._lock:
            if (descriptor := self._open.get(shard)) is not None:
                self._open.move_to_end(shard)
                return descriptor
        descriptor = _Descriptor(self._store.open(self._files[shard]))  # may take minutes
        with self._lock:
            descriptor = self._open.setdefault(shard, descriptor)
            self._open.move_to_end(shard)
            if len(self._open) > self._max_open:
                self._open.popitem(last=False)
        return descriptor


def _identity(member: Member) -> tuple[int, int]:
    """Where a file of a shard begins, and the hash of its key: two names of one file differ in that."""
    return member.offset, hash32(unnumbered(split_name(member.name)[0]))


class _Descriptor:
    """An open file, closed when the last reference is gone: keep this and not its number."""

    def __init__(self, number: int) -> None:
        self.number = number

    def read(self, size: int, offset: int) -> bytes:
        """By `pread`, which has no file position, so that many threads may read at once."""
        return os.pread(self.number, size, offset)

    def __del__(self) -> None:
        os.close(self.number)


def _missing(name: str, base: str) -> FileNotFoundError:
    command = prepare_command(name, {})
    if remote.is_remote(base):
        command = f"{command.replace('<path>', '<folder>')}, and copy them there"
    return FileNotFoundError(
        f"{name}: no shards under {base}. Expected {base}/train-*.tar and dataset.json. Make them with: {command}"
    )


def _refuse_ids(name: str, base: str, largest: int, num_images: int) -> None:
    if too_sparse(largest, num_images):
        raise ValueError(
            f"{name}: labels go up to {largest:,}, but there are {num_images:,} images: they look like ids, and the "
            f"head would have {largest + 1:,} classes. Write class indices, or class names and {base}/dataset.json; "
            f"or set data.num_classes={largest + 1}, if that is intended."
        )


def _classes(
    name: str, base: str, named: list[str] | None, largest: int, num_classes: int | None
) -> list[str]:
    """Names of the classes, as many as the head has."""
    classes = named if named is not None else [str(label) for label in range(largest + 1)]
    if largest >= len(classes):
        raise ValueError(
            f"{name}: labels go up to {largest}, but dataset.json names only {len(classes)} classes. "
            f"Name all {largest + 1} in {base}/dataset.json, in the order of labels."
        )
    if num_classes is None:
        return classes
    if num_classes < len(classes):
        raise ValueError(
            f"{name}: num_classes is {num_classes}, but there are {len(classes)} classes under {base}."
        )
    return classes + [str(label) for label in range(len(classes), num_classes)]


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
