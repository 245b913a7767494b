"""Image files named in a list, with one label or several each.

A line of a .tsv or .txt file is `path<TAB>label[,label...]`, one of a .jsonl file {"path": ..., "labels":
[...]} or {"path": ..., "label": ...}. Paths are relative to the list's folder. Labels are class names, or
positions in the list of classes. The file is read twice, line by line: for what it holds, then for its
samples; its length costs no memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from mixer_lightning.data.sources.disk import read_regular
from mixer_lightning.data.sources.labels import NegativeLabel, named_classes, refuse_negative
from mixer_lightning.data.sources.names import stem, suffix_of
from mixer_lightning.files import readable
from mixer_lightning.prepare.options import SPLITS, Options
from mixer_lightning.prepare.readers import (
    EVERYWHERE,
    PROBED_IMAGES,
    Cursor,
    Extent,
    Sample,
    Source,
    selected_splits,
)

ENDINGS = (".tsv", ".txt", ".jsonl")
FORM = 'path<TAB>label[,label...] in a .tsv or .txt file, {"path": ..., "labels": [...]} in a .jsonl file'


class Row(NamedTuple):
    """A line of a list."""

    path: str
    labels: list[str]


class Contents(NamedTuple):
    """What a list holds."""

    num_samples: int
    most_labels: int  # of one image
    labels: set[str]
    some_paths: list[str]  # evenly spaced
    checksum: str


def open_list(source: Path, options: Options) -> Source:
    """Read a list, or a folder with train.tsv, val.tsv, test.tsv (or .txt, .jsonl)."""
    files = _files(source, options.split)
    files = {split: files[split] for split in selected_splits(files, options)}
    contents = {split: _contents(path) for split, path in files.items()}
    found = set[str]().union(*(each.labels for each in contents.values()))
    total = sum(each.num_samples for each in contents.values())
    classes, label_of = named_classes(found, total, options.classes, what="source", key="classes")
    return Source(
        name=options.data,
        release=options.data,
        classes=classes,
        splits={
            split: Extent(each.num_samples, _estimate_bytes(files[split], each))
            for split, each in contents.items()
        },
        labels_per_image=max((each.most_labels for each in contents.values()), default=1),
        fingerprint=[f"{split}: {each.checksum}" for split, each in contents.items()],
        total=total,
        samples=partial(
            _samples, files, {split: each.num_samples for split, each in contents.items()}, label_of
        ),
    )


def _files(source: Path, split: str) -> dict[str, Path]:
    if source.is_file():
        if source.suffix not in ENDINGS:
            raise ValueError(f"source: {source} is not a list. Expected {FORM}.")
        return {split: source}
    found: dict[str, Path] = {}
    for split in SPLITS:
        there = [path for ending in ENDINGS if (path := source / f"{split}{ending}").is_file()]
        if len(there) > 1:
            raise ValueError(
                f"source: {source} holds {' and '.join(path.name for path in there)}, and only one of them can be "
                f"the list of {split}. Remove or rename the others, or set source to one file."
            )
        if there:
            found[split] = there[0]
    if not found:
        raise ValueError(
            f"source: {source} holds no list. Expected train.tsv (and val.tsv, test.tsv), or set source to a file."
        )
    return found


def _samples(
    files: dict[str, Path],
    counts: dict[str, int],
    label_of: dict[str, int],
    start: Cursor,
    *,
    places: range = EVERYWHERE,
) -> Iterator[Sample]:
    done = 0
    for part, (split, file) in enumerate(files.items()):
        begin = max(start[1] if part == start[0] else 0, places.start - done)
        end = min(counts[split], places.stop - done)
        if part >= start[0] and begin < end:
            for index, row in enumerate(islice(rows(file), end)):
                if index >= begin:
                    yield Sample(
                        split,
                        stem(readable(row.path)),
                        tuple(dict.fromkeys(label_of[label] for label in row.labels)),
                        suffix_of(row.path),
                        partial(read_regular, str(file.parent / row.path)),
                        (part, index + 1),
                        done + index + 1,
                    )
        done += counts[split]


def rows(file: Path) -> Iterator[Row]:
    """The lines of a list that are not blank.

    Raises:
        ValueError: a line is not as it should be; it is named.
    """
    is_json = file.suffix == ".jsonl"
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    row = _json_row(line) if is_json else _tab_row(line)
                except NegativeLabel as error:
                    raise ValueError(f"{file}, line {number:,}: {error}") from None
                except (ValueError, KeyError, TypeError):
                    raise ValueError(
                        f"{file}, line {number:,}: {line.strip()[:80]!r}. Expected {FORM}."
                    ) from None
                yield row


def _tab_row(line: str) -> Row:
    path, labels = line.rstrip("\r\n").split("\t")
    return _checked(path, [label.strip() for label in labels.split(",")])


def _json_row(line: str) -> Row:
    record = json.loads(line)
    labels = record["labels"] if "labels" in record else [record["label"]]
    if not isinstance(record["path"], str) or not isinstance(labels, list):  # a text is not a list of letters
        raise TypeError
    if not all(isinstance(label, str | int) and not isinstance(label, bool) for label in labels):
        raise TypeError
    return _checked(record["path"], [str(label) for label in labels])


def _checked(path: str, labels: list[str]) -> Row:
    if not path or not labels or not all(labels):
        raise ValueError
    for label in labels:
        refuse_negative(path, label)
    return Row(path, [readable(label) for label in labels])


def _contents(file: Path) -> Contents:
    num_samples, most_labels, every = 0, 0, 1
    labels: set[str] = set()
    some: list[str] = []
    for row in rows(file):
        if num_samples % every == 0:
            some.append(row.path)
            if len(some) >= 2 * PROBED_IMAGES:
                some, every = some[::2], 2 * every
        num_samples += 1
        most_labels = max(most_labels, len(row.labels))
        labels.update(row.labels)
    if not num_samples:
        raise ValueError(f"source: {file} is empty. Expected {FORM}.")
    with file.open("rb") as lines:
        checksum = hashlib.file_digest(lines, "sha256").hexdigest()
    return Contents(num_samples, most_labels, labels, some, checksum)


def _estimate_bytes(file: Path, contents: Contents) -> int:
    """Bytes of all images, from the mean of some; ValueError when none of them exists."""
    paths = [path for name in contents.some_paths if (path := file.parent / name).is_file()]
    if not paths:
        raise ValueError(
            f"source: none of {len(contents.some_paths)} images looked at exists, such as "
            f"{file.parent / contents.some_paths[0]}. Paths are relative to the folder of {file.name}."
        )
    return round(contents.num_samples * sum(path.stat().st_size for path in paths) / len(paths))
