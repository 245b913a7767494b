"""WebDataset shards (tar files), read at random through an index of our own.

webdataset itself streams, and cannot resume or order samples without regard to the number of readers; besides, it
takes a shard that was cut between two files for a whole one. Here the tar headers are read once, into an index that
says where every image lies. Reading a sample is then one `pread`, in any order, from any number of processes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from mixer_lightning.data.decode import decode
from mixer_lightning.data.sources import BadImage, Dataset, Images

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
BLOCK = 512  # tar files consist of blocks of this many bytes
LONGEST_PADDING = 2**20  # of zeros at the end of a tar; common programs write 10,240 bytes or less
OPEN_SHARDS = 64  # files that one process keeps open


def shards(*, root: str, name: str = "shards", num_classes: int | None = None) -> Dataset:
    """Samples in `<root>/train-*.tar`, and `val-*.tar` or `test-*.tar` (or both).

    A sample is a run of files in a shard that share their name up to the first dot: one image (jpg, jpeg, png, webp)
    and its label, in a `.cls` file (the class index, or a class name of dataset.json) or a `.json` file
    ({"label": index}). `<root>/dataset.json` ({"classes": ["name of class 0", ...]}) names the classes; without it
    they are called by their number.

    `num_classes` is the size of the head, where it shall exceed the number of classes that are named or found.

    The index is built when first needed and kept in `<root>/<split>-index.npz`, or under ~/.cache/mixer_lightning
    (XDG_CACHE_HOME) where `root` cannot be written; a shard that changes in size or time makes it void.

    Raises FileNotFoundError or ValueError naming the folder, or the shard and sample, and what is wrong.
    """
    base = Path(root).expanduser().absolute()
    found = {split: sorted(base.glob(f"{split}-*.tar")) for split in ("train", "val", "test")}
    if not found["train"]:
        raise FileNotFoundError(
            f"{name}: no shards under {base}. Expected {base}/train-*.tar and dataset.json. "
            f"Set data.root to the folder that holds them."
        )
    if not found["val"] and not found["test"]:
        raise FileNotFoundError(
            f"{name}: neither {base}/val-*.tar nor {base}/test-*.tar exists. Expected one of them beside train-*.tar."
        )
    named = _class_names(name, base / "dataset.json")
    indices = {split: _index(name, base, split, paths, named) for split, paths in found.items() if paths}
    largest = max(index.max_label for index in indices.values())
    classes = named if named is not None else [str(label) for label in range(largest + 1)]
    if largest >= len(classes):
        raise ValueError(
            f"{name}: labels go up to {largest}, but dataset.json names only {len(classes)} classes."
        )
    if num_classes is not None:
        if num_classes < len(classes):
            raise ValueError(
                f"{name}: num_classes is {num_classes}, but there are {len(classes)} classes under {base}."
            )
        classes = classes + [str(label) for label in range(len(classes), num_classes)]
    splits: dict[str, Images] = {split: ShardImages(found[split], index) for split, index in indices.items()}
    return Dataset(name=name, classes=classes, splits=splits)


@dataclass(frozen=True)
class Index:
    """Where each image of a split lies. Arrays of one length; 20 bytes a sample."""

    shard: npt.NDArray[np.int32]  # position in the sorted list of shards
    offset: npt.NDArray[np.int64]  # of the image's first byte
    size: npt.NDArray[np.int32]  # in bytes
    label: npt.NDArray[np.int32]

    @property
    def max_label(self) -> int:
        """The largest label."""
        return int(self.label.max())


class ShardImages:
    """The images of one split."""

    def __init__(self, paths: list[Path], index: Index) -> None:
        self._paths = paths
        self._index = index
        self._open: OrderedDict[int, _Descriptor] = OrderedDict()  # of this process, the latest used last

    def __len__(self) -> int:
        return len(self._index.label)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        size = int(self._index.size[index])
        try:
            data = self._read(int(self._index.shard[index]), int(self._index.offset[index]), size)
            if len(data) < size:
                raise ValueError(f"the shard ends after {len(data):,} of its {size:,} bytes")
            return decode(data), int(self._index.label[index])
        except (ValueError, OSError) as error:
            raise BadImage(f"cannot decode {self.name(index)}: {error}") from error

    def name(self, index: int) -> str:
        """The shard's path, the file's name inside and where it starts."""
        shard, offset = int(self._index.shard[index]), int(self._index.offset[index])
        try:  # the header is the block before the data; only its first 100 bytes of name, for a message enough
            member = self._read(shard, offset - BLOCK, 100).split(b"\0")[0].decode(errors="replace")
        except OSError:
            member = "?"
        return f"{self._paths[shard]}: {member} (at byte {offset:,})"

    def __getstate__(self) -> dict[str, object]:
        """Workers that are spawned open the shards themselves."""
        return {**self.__dict__, "_open": OrderedDict()}

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        """`pread` keeps no position, so descriptors may also be shared with forked workers and other threads."""
        descriptor = self._open.pop(shard, None) or _Descriptor(self._paths[shard])
        self._open[shard] = descriptor
        if len(self._open) > OPEN_SHARDS:
            self._open.popitem(last=False)
        return os.pread(descriptor.number, size, offset)


class _Descriptor:
    """An open file, closed when nobody holds it any more."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


# ---- classes


def _class_names(name: str, path: Path) -> list[str] | None:
    if not path.exists():
        return None
    try:
        classes = json.loads(path.read_text(encoding="utf-8"))["classes"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{name}: cannot read {path} ({error}). Expected {{"classes": ["name", ...]}}.'
        ) from error
    if not isinstance(classes, list) or not classes or not all(isinstance(each, str) for each in classes):
        raise ValueError(f'{name}: "classes" in {path} must be a list of names.')
    return classes


# ---- index: read from the cache or built


def _index(name: str, base: Path, split: str, paths: list[Path], classes: list[str] | None) -> Index:
    fingerprint = _fingerprint(paths, classes)
    elsewhere = _cache_home() / hashlib.sha256(str(base).encode()).hexdigest()[:16]
    for folder in (base, elsewhere):
        if (index := _load(folder / f"{split}-index.npz", fingerprint)) is not None:
            return index
    log.info("%s: indexing %s %s shards, once", name, f"{len(paths):,}", split)
    index = _build(name, paths, classes)
    for folder in (base, elsewhere):
        if _save(folder / f"{split}-index.npz", fingerprint, index):
            return index
    log.warning(
        "%s: the index could be kept neither in %s nor in %s; it is built anew each time",
        name,
        base,
        elsewhere,
    )
    return index


def _cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mixer_lightning"


def _fingerprint(paths: list[Path], classes: list[str] | None) -> str:
    """Changes with any shard's name, size or time, and with the class names (labels may be written as names)."""
    states = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.sha256(json.dumps(["index 1", states, classes]).encode()).hexdigest()


def _load(path: Path, fingerprint: str) -> Index | None:
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["fingerprint"]) != fingerprint:
                return None
            return Index(stored["shard"], stored["offset"], stored["size"], stored["label"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # absent, or not one of ours
        return None


def _save(path: Path, fingerprint: str, index: Index) -> bool:
    """Write the index in one move, so that processes that start together never see half of one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=".index-", suffix=".npz", delete=False
        ) as file:
            try:
                np.savez(
                    file,
                    fingerprint=np.array(fingerprint),
                    shard=index.shard,
                    offset=index.offset,
                    size=index.size,
                    label=index.label,
                )
                file.flush()
                Path(file.name).chmod(0o644)
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError:
        return False
    return True


def _build(name: str, paths: list[Path], classes: list[str] | None) -> Index:
    labels_of = {each: label for label, each in enumerate(classes or [])}
    with ThreadPoolExecutor(8) as pool:  # mostly waits for the file system
        tables = list(pool.map(lambda path: _samples(name, path, labels_of), paths))
    rows = np.concatenate(tables)  # [N, 3]: offset, size, label
    if len(rows) == 0:
        raise ValueError(
            f"{name}: no samples in {paths[0]}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''}."
        )
    shard = np.repeat(np.arange(len(tables), dtype=np.int32), [len(table) for table in tables])
    return Index(shard, rows[:, 0].copy(), rows[:, 1].astype(np.int32), rows[:, 2].astype(np.int32))


def _samples(name: str, path: Path, labels_of: dict[str, int]) -> npt.NDArray[np.int64]:
    """offset, size and label of each image in one shard: [N, 3]."""
    rows: list[tuple[int, int, int]] = []
    with path.open("rb") as file:
        try:
            for key, group in groupby(
                _members(file.fileno()), key=lambda member: _split_name(member.name)[0]
            ):
                if not key.rpartition("/")[2].startswith("__"):  # webdataset's mark for notes on the shard
                    rows.append(_sample(file.fileno(), key, list(group), labels_of))
        except ValueError as error:
            raise ValueError(f"{name}: {path}: {error}") from error
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def _split_name(name: str) -> tuple[str, str]:
    """A sample's key and the suffix that follows its first dot, as webdataset splits them."""
    match = re.fullmatch(r"((?:.*/)?[^/.]+)\.([^/]*)", name)
    return (match[1], match[2].lower()) if match else (name, "")


def _sample(fd: int, key: str, group: list[Member], labels_of: dict[str, int]) -> tuple[int, int, int]:
    files = {_split_name(member.name)[1]: member for member in group}
    images = [files[suffix] for suffix in files if suffix in IMAGE_SUFFIXES]
    if len(images) != 1:
        raise ValueError(
            f"sample {key!r} has {len(images)} images among {', '.join(member.name for member in group)}; "
            f"expected one of {', '.join(IMAGE_SUFFIXES)}."
        )
    note = files.get("cls") or files.get("json")
    if note is None:
        raise ValueError(
            f"sample {key!r} has no label. Expected {key}.cls or {key}.json beside {images[0].name}."
        )
    text = os.pread(fd, note.size, note.offset).decode("utf-8", errors="replace").strip()
    return images[0].offset, images[0].size, _label(key, note.name, text, labels_of)


def _label(key: str, file: str, text: str, labels_of: dict[str, int]) -> int:
    try:
        label = labels_of[text] if text in labels_of else json.loads(text)
        if isinstance(label, dict):
            label = label["label"]
    except (ValueError, KeyError):
        label = None
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < 2**31:
        raise ValueError(
            f"sample {key!r}: {file} holds {text[:60]!r}, not a class index or a class of dataset.json."
        )
    return label


# ---- tar headers (POSIX.1-2001 "ustar" and "pax", and GNU's long names)


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar."""

    name: str
    offset: int  # of its first byte
    size: int  # in bytes


def _members(fd: int) -> Iterator[Member]:
    """The regular files of a tar, in order; ValueError when it is cut or is no tar.

    Twenty times as fast as `tarfile`, and stricter: two blocks of zeros must follow the last file, so a tar that was
    cut between two files is noticed as well.
    """
    end = os.fstat(fd).st_size
    cut = f"it is cut after {end:,} bytes. Copy or make this shard again"
    position, name, size = 0, None, None
    while True:
        header = os.pread(fd, 2 * BLOCK, position)
        if not any(header) and len(header) == 2 * BLOCK:
            if position == 0 or end - position > LONGEST_PADDING:  # a file made to size, then not filled
                raise ValueError(f"from byte {position:,} on it is empty. Copy or make this shard again.")
            return
        if (
            len(header) < 2 * BLOCK
        ):  # every header is followed by data, another header or the two blocks of zeros
            raise ValueError(f"{cut}.")
        if not _checksum_agrees(header[:BLOCK]):
            raise ValueError(f"there is no tar header at byte {position:,}. Copy or make this shard again.")
        kind = header[156:157]
        own_size = _number(header[124:136])
        if kind in b"xgLK" and kind:  # extended headers, which describe the file that follows
            data = os.pread(fd, own_size, position + BLOCK)
            if len(data) < own_size:
                raise ValueError(f"{cut}.")
            if kind == b"x":
                fields = _pax(data)
                name = fields.get("path", name)
                size = int(fields["size"]) if "size" in fields else size
            elif kind == b"L":
                name = data.split(b"\0")[0].decode(errors="surrogateescape")
            length = own_size
        else:
            length = own_size if size is None else size
            if kind in (b"0", b"\0", b"7"):
                member = Member(name or _ustar_name(header), position + BLOCK, length)
                if member.offset + length > end:
                    raise ValueError(f"{cut}, inside {member.name}.")
                yield member
            name = size = None
        position += BLOCK + (length + BLOCK - 1) // BLOCK * BLOCK


def _checksum_agrees(block: bytes) -> bool:
    """The header's sum of bytes, in which the checksum itself counts as eight spaces."""
    try:
        return _number(block[148:156]) == sum(block) - sum(block[148:156]) + 8 * ord(" ")
    except ValueError:
        return False


def _number(raw: bytes) -> int:
    """Octal digits, or GNU's binary form for sizes from 8 GiB on, marked by the highest bit."""
    if raw[0] & 0x80:
        return int.from_bytes(raw, "big") & ~(0x80 << (8 * len(raw) - 8))
    return int(raw.split(b"\0")[0].strip() or b"0", 8)


def _ustar_name(header: bytes) -> str:
    name = header[:100].split(b"\0")[0]
    if header[257:265] == b"ustar\x0000" and header[345]:  # POSIX: names over 100 bytes are split
        name = header[345:500].split(b"\0")[0] + b"/" + name
    return name.decode(errors="surrogateescape")


def _pax(data: bytes) -> dict[str, str]:
    """Records "<length> <key>=<value>\\n"."""
    fields = {}
    while data[:1].isdigit():
        length, _, _ = data.partition(b" ")
        record = data[len(length) + 1 : int(length) - 1]
        key, _, value = record.partition(b"=")
        fields[key.decode()] = value.decode(errors="surrogateescape")
        data = data[int(length) :]
    return fields
