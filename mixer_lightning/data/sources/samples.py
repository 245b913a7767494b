"""The samples of a shard: runs of files in a tar that share their name up to the first dot.

Legend: n images of a shard, L labels an image has at most.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mixer_lightning.data.sources.names import (
    IMAGE_SUFFIXES,
    SHARD_SUFFIXES,
    is_unreadable_here,
    not_read_here,
    unnumbered,
)
from mixer_lightning.data.sources.tar import BLOCK, MAX_IMAGE_BYTES, Member, members
from mixer_lightning.data.stateless_random import hash32
from mixer_lightning.files import readable

#: A row of the index. The image's first byte is number `block` * 512 of its shard; rows are in the order of shards.
ROW = np.dtype([("block", "<u4"), ("size", "<u4"), ("label", "<i4"), ("hash", "<u4")])

MAX_NOTE_BYTES = 2**24  # of a .cls or .json file

BROKEN_LINK, HIDDEN = "links to nothing in the archive", "hidden files"
WITHOUT_SUFFIX, WITHOUT_IMAGE = "files without a suffix", "files beside which there is no image"


def split_name(name: str) -> tuple[str, str]:
    """A sample's key and the suffix that follows its first dot, as webdataset splits them; no suffix, no sample."""
    folder, slash, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return (f"{folder}{slash}{stem}", suffix.lower()) if stem else (name, "")


class Samples(NamedTuple):
    """The images in a shard."""

    rows: npt.NDArray[Any]  # ROW [n]
    labels: npt.NDArray[np.int32]  # [n, L]
    left_out: dict[str, list[str]]  # names of files by the reason why they are part of no sample


def samples(fd: int, labels_of: dict[str, int]) -> Samples:
    """The images in one shard, and what beside them belongs to none, as webdataset passes it over."""
    rows: list[tuple[int, int, int, int]] = []
    labels: list[list[int]] = []
    left_out: defaultdict[str, list[str]] = defaultdict(list)

    def named() -> Iterator[tuple[str, str, Member]]:
        for member in members(fd, left_out=left_out[BROKEN_LINK].append):
            key, suffix = split_name(member.name)
            if suffix:
                yield key, suffix, member
            else:
                file = member.name.rpartition("/")[2]
                left_out[HIDDEN if file.startswith(".") else WITHOUT_SUFFIX].append(member.name)

    for key, group in groupby(named(), key=itemgetter(0)):
        if key.rpartition("/")[2].startswith("__"):  # webdataset's mark for notes on the shard
            continue
        files: dict[str, Member] = {}
        for _, suffix, member in group:
            if suffix in files:
                raise ValueError(
                    f"sample {key!r} has {member.name} twice; samples side by side need other names."
                )
            files[suffix] = member
        if "cls" not in files and not any(suffix in IMAGE_SUFFIXES for suffix in files):
            left_out[WITHOUT_IMAGE] += [member.name for member in files.values()]
            continue
        if not any(suffix in IMAGE_SUFFIXES for suffix in files) and (
            found := [*filter(is_unreadable_here, files)]
        ):
            left_out[not_read_here(found[0])].append(files[found[0]].name)
            continue
        image, labels_found = _sample(fd, key, files, labels_of)
        rows.append((image.offset // BLOCK, image.size, labels_found[0], hash32(unnumbered(key))))
        labels.append(labels_found)
    width = max(map(len, labels), default=1)
    padded = [each + [-1] * (width - len(each)) for each in labels]
    return Samples(
        np.array(rows, dtype=ROW),
        np.array(padded, dtype=np.int32).reshape(-1, width),
        {reason: names for reason, names in left_out.items() if names},
    )


def _sample(
    fd: int, key: str, files: dict[str, Member], labels_of: dict[str, int]
) -> tuple[Member, list[int]]:
    suffix, note_suffix = image_and_note(key, {each: member.name for each, member in files.items()})
    image, note = files[suffix], files[note_suffix]
    for file, limit in ((image, MAX_IMAGE_BYTES), (note, MAX_NOTE_BYTES)):
        if file.size > limit:
            raise ValueError(f"sample {key!r}: {file.name} has {file.size:,} bytes, too many for what it is.")
    labels = read_labels(
        key, note.name, os.pread(fd, note.size, note.offset), labels_of, is_json=note_suffix == "json"
    )
    return image, labels


def image_and_note(key: str, names: Mapping[str, str]) -> tuple[str, str]:
    """Which suffixes of a sample are those of its image and of its labels, among the names of its files by suffix.

    Raises:
        ValueError: it has no image or several, or no labels.
    """
    images = [suffix for suffix in names if suffix in IMAGE_SUFFIXES]
    if len(images) > 1:  # a picture and, say, a .tif of labels of its pixels
        images = [suffix for suffix in images if suffix in SHARD_SUFFIXES] or images
    if len(images) != 1:
        raise ValueError(
            f"sample {key!r} has {len(images)} images among {', '.join(names.values())}; "
            f"expected one, ending in {', '.join(IMAGE_SUFFIXES)}."
        )
    for note in ("cls", "json"):
        if note in names:
            return images[0], note
    raise ValueError(
        f"sample {key!r} has no label. Expected {key}.cls or {key}.json beside {names[images[0]]}."
    )


def read_labels(
    key: str, name: str, content: bytes, labels_of: Mapping[str, int], *, is_json: bool
) -> list[int]:
    """Class indices, one or more, of a sample's .cls or .json file; ValueError where they cannot be understood."""
    text = readable(content.decode(errors="surrogateescape")).strip()
    labels = _labels(text, labels_of, is_json=is_json)
    if not labels:
        raise ValueError(
            f"sample {key!r}: {name} holds {text[:60]!r}, not a class index or a class of dataset.json."
        )
    return labels


def _labels(text: str, labels_of: Mapping[str, int], *, is_json: bool) -> list[int]:
    """Class indices from a .cls or .json file; none where it cannot be understood."""
    found: Any = [text]
    if is_json:
        try:
            note = json.loads(text)
            found = note["labels"] if "labels" in note else [note["label"]]
        except (ValueError, KeyError, TypeError):
            return []
    labels = [_label(each, labels_of) for each in found] if isinstance(found, list) else [None]
    return [label for label in labels if label is not None] if None not in labels else []


def _label(written: object, labels_of: Mapping[str, int]) -> int | None:
    """The class index that is written as a number or as a name."""
    if isinstance(written, str):
        is_number = written.isascii() and written.isdigit()
        written = int(written) if is_number else labels_of.get(written)
    is_index = isinstance(written, int) and not isinstance(written, bool) and 0 <= written < 2**31
    return written if is_index else None  # type: ignore[return-value]
