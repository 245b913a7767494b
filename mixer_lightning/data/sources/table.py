"""Image files and their labels in a table: a CSV file of `path,label`."""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mixer_lightning.data.sources import Dataset, Images
from mixer_lightning.data.sources.folder import SPLIT_ALIASES, SPLITS, FolderImages
from mixer_lightning.data.sources.labels import NegativeLabel, named_classes, refuse_negative
from mixer_lightning.files import readable

PATHS = ("path", "file", "filename", "file_name", "filepath", "image", "image_path")
LABELS = ("label", "class", "class_name", "target", "category")
SPLIT_COLUMN = "split"
DELIMITERS = ",;\t"
FORM = "a first line path,label (and split, where one file holds all), then one line an image"
LOOKED_AT = 1000  # files of a split that must be there


class Row(NamedTuple):
    """A line of a table."""

    path: str
    label: str
    split: str
    line: int


def table(
    *,
    root: str,
    train: str | None = None,
    val: str | None = None,
    test: str | None = None,
    classes: str | None = None,
    name: str = "csv",
) -> Dataset:
    """Images named in CSV files, whose paths are relative to `root`.

    `train`, `val`, `test` are files, relative to root; without any of them, <root>/train.csv, val.csv and test.csv, as
    many as there are, or the one file that root itself may be. A file has a first line with names of columns, in any
    order and among others: path (or file, filename, image), label (or class, target, category) and, where one file
    holds several splits, split. Commas, semicolons or tabs separate them; texts with such are quoted. An image in
    several lines counts once.

    Labels are class names, sorted, or numbers: positions in the list of classes. `classes` is a file that names them,
    one a line, in order. `name` is the data set's name in messages and results.

    Raises FileNotFoundError or ValueError naming the file and the line, and what was expected.
    """
    base = Path(root).expanduser().absolute()
    given = {split: file for split, file in (("train", train), ("val", val), ("test", test)) if file}
    if base.is_file():
        if given:
            raise ValueError(
                f"{name}: data.root is the file {base}: set it to a folder, or leave data.train out."
            )
        base, given = base.parent, {"train": base.name}
    files = {split: base / Path(file).expanduser() for split, file in given.items()}
    files = files or {split: path for split in SPLITS if (path := base / f"{split}.csv").is_file()}
    if not files:
        raise FileNotFoundError(
            f"{name}: no table at {base}. Set data.root to a CSV file, or to a folder with train.csv (and val.csv or "
            f"test.csv): {FORM}."
        )
    lines: defaultdict[str, list[Row]] = defaultdict(list)
    for split, path in files.items():
        if not path.is_file():
            raise FileNotFoundError(f"{name}: data.{split}={given[split]}: there is no file {path}.")
        for row in _rows(name, path):
            lines[row.split or split].append(row)
    rows = _each_image_once(name, lines)
    labels = {row.label for part in rows.values() for row in part}
    total = sum(map(len, rows.values()))
    names, label_of = named_classes(labels, total, classes, what=name, key="data.classes")
    splits: dict[str, Images] = {}
    for split in SPLITS:
        if rows.get(split):
            paths = [row.path for row in rows[split]]
            _check_there(name, base, paths)
            splits[split] = FolderImages(base, paths, [label_of[row.label] for row in rows[split]])
    return Dataset(name, [readable(each) for each in names], splits)


def _rows(name: str, path: Path) -> Iterator[Row]:
    """The lines of a table; ValueError naming the first that has not what the columns say."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        first = file.readline()
        delimiter = max(DELIMITERS, key=first.count)
        columns = [each.strip().lower() for each in next(csv.reader([first], delimiter=delimiter), [])]
        at_path, at_label = (
            next((columns.index(each) for each in known if each in columns), None)
            for known in (PATHS, LABELS)
        )
        if at_path is None or at_label is None:
            raise ValueError(f"{name}: {path} begins with {first.strip()[:80]!r}. Expected {FORM}.")
        at_split = columns.index(SPLIT_COLUMN) if SPLIT_COLUMN in columns else None
        reader = csv.reader(file, delimiter=delimiter)
        found = False
        try:
            for cells in reader:
                if not any(cells):
                    continue
                found = True
                line = reader.line_num + 1
                texts = [cell.strip() for cell in cells]
                if len(texts) < len(columns) or not texts[at_path] or not texts[at_label]:
                    raise ValueError(f"{name}: line {line:,} of {path} lacks a path or a label: {FORM}.")
                try:
                    refuse_negative(texts[at_path], texts[at_label])
                except NegativeLabel as error:
                    raise ValueError(f"{name}: line {line:,} of {path}: {error}") from None
                split = texts[at_split].lower() if at_split is not None else ""
                split = SPLIT_ALIASES.get(split, split)
                if split and split not in SPLITS:
                    raise ValueError(
                        f"{name}: line {line:,} of {path} has the split {split!r}; there are {', '.join(SPLITS)}."
                    )
                yield Row(texts[at_path], texts[at_label], split, line)
        except csv.Error as error:
            raise ValueError(
                f"{name}: line {reader.line_num + 1:,} of {path}: {error}. Expected {FORM}."
            ) from error
    if not found:
        raise ValueError(f"{name}: {path} names no image. Expected {FORM}.")


def _each_image_once(name: str, rows: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """The first line of each image, which has one label, and is not trained on and judged by."""
    seen: dict[str, tuple[str, Row]] = {}
    for split, part in rows.items():
        for row in part:
            other_split, other = seen.setdefault(os.path.normpath(row.path), (split, row))
            if other_split != split:
                raise ValueError(
                    f"{name}: {row.path} is in {other_split} and in {split}. Leave it out of one of them."
                )
            if other.label != row.label:
                raise ValueError(
                    f"{name}: {row.path} has the label {other.label!r} in line {other.line:,} of {split} and "
                    f"{row.label!r} in line {row.line:,}. Leave one of them out."
                )
    once: defaultdict[str, list[Row]] = defaultdict(list)
    for split, row in seen.values():
        once[split].append(row)
    return once


def _check_there(name: str, base: Path, paths: list[str]) -> None:
    """See that some of the files exist, evenly spaced: a wrong folder shows at once."""
    some = paths[:: max(1, len(paths) // LOOKED_AT)]
    missing = [path for path in some if not (base / path).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{name}: {len(missing):,} of {len(some):,} files looked at do not exist, such as {base / missing[0]}. "
            "Paths are relative to data.root, and a CSV file that data.root is, to its folder."
        )
