"""Image files in one folder per class."""

from __future__ import annotations

import logging
import os
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mixer_lightning.data.sources import Dataset, names
from mixer_lightning.data.sources.disk import image_files, open_regular, read_regular, reading_below
from mixer_lightning.files import readable

if TYPE_CHECKING:
    from mixer_lightning.data.sources import Indices

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
MARKED_BYTES = 2**16  # of a file, which hardly any other begins with
LAYOUT = "<root>/train/<class>/<image> and the same under val/ or test/"
SPLIT_ALIASES = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}


class FolderImages:
    """Image files under `root` with their labels, in sorted order of class and path.

    `left_out` names the visible files beside them that are not images by their ending.
    """

    def __init__(self, root: Path, files: list[str], labels: list[int], left_out: Sequence[str] = ()) -> None:
        self._root = str(root)
        self._files = files  # relative to root
        self._labels = np.asarray(labels, dtype=np.int32)
        self.left_out = left_out

    def __len__(self) -> int:
        return len(self._files)

    def labels(self, indices: Indices) -> npt.NDArray[np.int64]:
        """Class indices [B]."""
        return self._labels[indices].astype(np.int64)

    def read(self, index: int) -> bytes:
        """The file.

        Raises:
            ValueError: it is a pipe or a device.
            StorageError: the folder of all files is gone, or this machine opens no more files.
        """
        with reading_below(self._root):
            return read_regular(self._path(index))

    def key(self, index: int) -> str:
        """The path under root."""
        return readable(self._files[index])

    def mark(self, index: int) -> int:
        """A checksum of the file's size and first bytes."""
        with open_regular(self._path(index)) as file:
            return zlib.crc32(file.read(MARKED_BYTES), os.fstat(file.fileno()).st_size)

    def name(self, index: int) -> str:
        """The file's path."""
        return readable(self._path(index))

    def _path(self, index: int) -> str:
        return os.path.join(self._root, self._files[index])  # noqa: PTH118  (a million times an epoch)


def folder(*, root: str, name: str = "folder") -> Dataset:
    """Images in class folders: `<root>/train/<class>/...`, and `val/` or `test/` (or both) alike.

    Class folders directly under `root`, with no split's folder among them, are train alone; data/splits.py slices
    others from it. Classes are the folder names of train in sorted order, or of the other splits where there is no
    train, for evaluation; images may be in subfolders of their class, and val and test may lack some of a class.
    Hidden files are skipped, and so are those that do not end as images do (names.py), whose number the log says.
    `name` is the data set's name in messages and results.

    Raises FileNotFoundError or ValueError naming the folder that is missing, empty or has classes unknown to train.
    """
    base = existing_root(name, root)
    found = class_folders(base)
    present = {split: base / split for split in SPLITS if split in found}
    for each in found:
        split = each.lower() if each.lower() in SPLITS else SPLIT_ALIASES.get(each.lower(), each)
        if split in SPLITS and split not in present:
            raise ValueError(f"{name}: {base / each} is not a split. Call it {split}, for {LAYOUT}.")
    if not present:
        present = {"train": base}
    learnt = [present["train"]] if "train" in present else list(present.values())
    classes = sorted({each for path in learnt for each in class_folders(path)})
    if not classes:
        if "train" not in present:
            raise FileNotFoundError(f"{name}: no folder {base / 'train'}. Expected {LAYOUT}.")
        raise _no_classes(name, present["train"])
    splits = {
        split: scan(name, path, classes, all_filled=split == "train") for split, path in present.items()
    }
    say_left_out(name, splits)
    return Dataset(name=name, classes=[readable(each) for each in classes], splits={**splits})


def say_left_out(name: str, splits: Mapping[str, FolderImages]) -> None:
    """One line for all files that are not images by their endings."""
    counts = Counter(names.ending_of(path) for images in splits.values() for path in images.left_out)
    if counts:
        log.info("%s: %s", name, names.left_out(counts))


def existing_root(name: str, root: str) -> Path:
    """The absolute path of `root` with ~ expanded; FileNotFoundError when it is not a folder."""
    base = Path(root).expanduser().absolute()
    if not base.is_dir():
        raise FileNotFoundError(f"{name}: no folder {base}. Set data.root to one with {LAYOUT}.")
    return base


def class_folders(split: Path) -> list[str]:
    """Names of the visible folders in `split`, sorted."""
    with os.scandir(split) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def scan(name: str, split: Path, classes: list[str], *, all_filled: bool = True) -> FolderImages:
    """All images of one split, labelled by the position of their folder in `classes`.

    Raises:
        ValueError: there are none, or some of a class that is unknown or, with `all_filled`, none in a class folder.
    """
    labels_of = {each: label for label, each in enumerate(classes)}
    found = class_folders(split)
    if not found:
        raise _no_classes(name, split)
    unknown_classes: list[str] = []
    files: list[str] = []
    labels: list[int] = []
    empty: list[str] = []
    left_out: list[str] = []
    for each in found:
        inside = sorted(image_files(str(split), each, left_out))
        if not inside:
            empty.append(each)
            continue
        if each not in labels_of:
            unknown_classes.append(each)
            continue
        files += inside
        labels += [labels_of[each]] * len(inside)
    if unknown_classes:
        raise ValueError(
            f"{name}: {split} has {len(unknown_classes)} class folder(s) that train/ lacks: {_some(unknown_classes)}. "
            "Every class needs training images."
        )
    others = f" There, {names.left_out(Counter(map(names.ending_of, left_out)))}." if left_out else ""
    if not files:
        raise ValueError(f"{name}: no images under {split}. Expected {LAYOUT}.{others}")
    if empty and not all_filled:
        log.info("%s: no image of %s in %s", name, _some(empty), split)
    elif empty:
        raise ValueError(
            f"{name}: {len(empty)} class folder(s) under {split} hold no image: {_some(empty)}. "
            f"Fill or remove them.{others}"
        )
    return FolderImages(split, files, labels, left_out)


def _no_classes(name: str, split: Path) -> ValueError:
    with os.scandir(split) as entries:
        loose = sum(
            bool(names.suffix_of(entry.name)) and not names.is_hidden(entry.name) for entry in entries
        )
    beside = f", but {loose:,} image files, whose classes nothing tells" if loose else ""
    return ValueError(f"{name}: {split} holds no class folders{beside}. Expected {LAYOUT}.")


def _some(some: list[str]) -> str:
    shown = ", ".join(repr(readable(each)) for each in some[:5])
    return shown if len(some) <= 5 else f"{shown} and {len(some) - 5} more"
