"""Image files in one folder per class."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mixer_lightning.data.sources import Dataset, Images
from mixer_lightning.data.sources.names import FOLDER_ENDINGS

if TYPE_CHECKING:
    from mixer_lightning.data.sources import Indices

SPLITS = ("train", "val", "test")
MARKED_BYTES = 2**16  # of a file, which hardly any other begins with
LAYOUT = "<root>/train/<class>/<image> and the same under val/ or test/"
SPLIT_ALIASES = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}


class FolderImages:
    """Image files under `root` with their labels, in sorted order of class and path."""

    def __init__(self, root: Path, files: list[str], labels: list[int]) -> None:
        self._root = str(root)
        self._files = files  # relative to root
        self._labels = np.asarray(labels, dtype=np.int32)

    def __len__(self) -> int:
        return len(self._files)

    def labels(self, indices: Indices) -> npt.NDArray[np.int64]:
        """Class indices [B]."""
        return self._labels[indices].astype(np.int64)

    def read(self, index: int) -> bytes:
        """The file."""
        with open(self.name(index), "rb") as file:  # noqa: PTH123  (a million times an epoch)
            return file.read()

    def key(self, index: int) -> str:
        """The path under root."""
        return self._files[index]

    def mark(self, index: int) -> int:
        """A checksum of the file's size and first bytes."""
        with open(self.name(index), "rb") as file:  # noqa: PTH123
            return zlib.crc32(file.read(MARKED_BYTES), os.fstat(file.fileno()).st_size)

    def name(self, index: int) -> str:
        """The file's path."""
        return os.path.join(self._root, self._files[index])  # noqa: PTH118


def folder(*, root: str, name: str = "folder") -> Dataset:
    """Images in class folders: `<root>/train/<class>/...`, and `val/` or `test/` (or both) alike.

    Class folders directly under `root`, with no split's folder among them, are train alone; data/splits.py slices
    others from it. Classes are the folder names of train in sorted order; images may be in subfolders of their class.
    Files that are not images by their suffix (any case of jpg, jpeg, png, webp, bmp, ppm, tif, tiff) and hidden ones
    are skipped. `name` is the data set's name in messages and results.

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
    if "train" not in present:
        raise FileNotFoundError(f"{name}: no folder {base / 'train'}. Expected {LAYOUT}.")
    classes = class_folders(present["train"])
    if not classes:
        raise _no_classes(name, present["train"])
    splits: dict[str, Images] = {split: scan(name, path, classes) for split, path in present.items()}
    return Dataset(name=name, classes=classes, splits=splits)


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


def scan(name: str, split: Path, classes: list[str]) -> FolderImages:
    """All images of one split, labelled by the position of their folder in `classes`."""
    labels_of = {each: label for label, each in enumerate(classes)}
    found = class_folders(split)
    unknown_classes = [each for each in found if each not in labels_of]
    if unknown_classes:
        raise ValueError(
            f"{name}: {split} has {len(unknown_classes)} class folder(s) that train/ lacks: {_some(unknown_classes)}. "
            "Every class needs training images."
        )
    if not found:
        raise _no_classes(name, split)
    files: list[str] = []
    labels: list[int] = []
    empty: list[str] = []
    for each in found:
        inside = sorted(_image_files(split, each))
        if not inside:
            empty.append(each)
        files += inside
        labels += [labels_of[each]] * len(inside)
    if not files:
        raise ValueError(
            f"{name}: no images under {split}. Expected {LAYOUT}, files ending in {' '.join(FOLDER_ENDINGS)}."
        )
    if empty:
        raise ValueError(
            f"{name}: {len(empty)} class folder(s) under {split} hold no image: {_some(empty)}. "
            f"Fill or remove them; images end in {' '.join(FOLDER_ENDINGS)}."
        )
    return FolderImages(split, files, labels)


def _image_files(split: Path, inside: str) -> Iterator[str]:
    """Paths relative to `split` of the images anywhere under `split/inside`."""
    with os.scandir(f"{split}/{inside}") as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.name.lower().endswith(FOLDER_ENDINGS):
                yield f"{inside}/{entry.name}"
            elif entry.is_dir():
                yield from _image_files(split, f"{inside}/{entry.name}")


def _no_classes(name: str, split: Path) -> ValueError:
    with os.scandir(split) as entries:
        loose = sum(entry.name.lower().endswith(FOLDER_ENDINGS) for entry in entries)
    beside = f", but {loose:,} image files, whose classes nothing tells" if loose else ""
    return ValueError(f"{name}: {split} holds no class folders{beside}. Expected {LAYOUT}.")


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(each) for each in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
