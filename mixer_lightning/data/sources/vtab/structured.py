"""The eight structured tasks: where things are, how many, which way they look. For the parameters see natural.py."""

from __future__ import annotations

import gzip
import json
import math
import struct
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from mixer_lightning.data.sources import Dataset, Images
from mixer_lightning.data.sources.vtab import classes
from mixer_lightning.data.sources.vtab.originals import (
    Originals,
    Pool,
    files_pool,
    find,
    need,
    need_file,
    reading,
)
from mixer_lightning.data.sources.vtab.subset import Choice, Split, load
from mixer_lightning.data.sources.vtab.tasks import TASKS, Task
from mixer_lightning.data.sources.vtab.tfrecord import Span, examples

if TYPE_CHECKING:
    from mixer_lightning.data.sources import Indices, Pixels

CLEVR_DISTANCES = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0)
KITTI_DISTANCES = (-100.0, 8.0, 20.0, 999.0)
NO_VEHICLE = 1000.0
VEHICLES = ("Car", "Van", "Truck")
X_POSITION, ORIENTATION = 4, 3  # columns of dSprites' classes
ELEVATION, AZIMUTH = 1, 2  # columns of SmallNORB's info
NORB_BYTES, NORB_INTEGERS = 0x1E3D4C55, 0x1E3D4C54  # with which its files begin
NORB_FILES = {"train": "5x46789x9x18x6x2x96x96-training", "test": "5x01235x9x18x6x2x96x96-testing"}
ROWS_AT_ONCE = 2_000


def clevr_count(*, root: str, split: Split, lists: str | None = None, check_counts: bool = True) -> Dataset:
    """CLEVR: how many objects there are, 3 to 10; 15,000 test, CLEVR's "val"."""
    return _clevr("clevr_count", lambda depths: len(depths) - 3, Choice(root, split, lists, check_counts))


def clevr_dist(*, root: str, split: Split, lists: str | None = None, check_counts: bool = True) -> Dataset:
    """CLEVR: how far the nearest object is, in six classes; 15,000 test, CLEVR's "val"."""
    return _clevr(
        "clevr_dist",
        lambda depths: last_below(min(depths), CLEVR_DISTANCES),
        Choice(root, split, lists, check_counts),
    )


def dmlab(*, root: str, split: Split, lists: str | None = None, check_counts: bool = True) -> Dataset:
    """Frames of DeepMind Lab: {close, far, very far} x {reward, penalty}; 22,735 test."""
    task = TASKS["dmlab"]

    def read(places: list[Path]) -> Originals:
        how = "Unpack dmlab.tar.gz of storage.googleapis.com/dmlab-vtab"
        pools = {}
        for stored in ("train", "validation", "test"):
            files = _parts(places, f"dmlab-{stored}.tfrecord*")
            if not files:
                need(task, places, ["."], f"dmlab-{stored}.tfrecord", how=how)
            pools[stored] = _tfrecord_pool(files)
        return Originals(classes.numbers(task.classes), pools)

    numbers = classes.numbers(task.classes)
    return load(task, Choice(root, split, lists, check_counts), read, classes=numbers)


def kitti_dist(*, root: str, split: Split, lists: str | None = None, check_counts: bool = True) -> Dataset:
    """KITTI: how far the nearest car, van or truck is, in three classes, or that there is none; 711 test."""
    task = TASKS["kitti_dist"]

    def read(places: list[Path]) -> Originals:
        page = "of cvlibs.net/datasets/kitti (object detection)"
        inside = ["training", "raw/training", "Kitti/raw/training"]
        base = need(task, places, inside, "image_2", how=f"Unpack data_object_image_2.zip {page}")
        need(task, [base.parent], ["training"], "label_2", how=f"Unpack data_object_label_2.zip {page}")
        how = f"Unpack devkit_object.zip {page}"
        devkit = need(task, [*places, base.parent], [".", "devkit"], "mapping/train_rand.txt", how=how)
        pools = {stored: _kitti_pool(base, ids) for stored, ids in kitti_division(devkit / "mapping").items()}
        return Originals(classes.KITTI_DIST, pools)

    return load(task, Choice(root, split, lists, check_counts), read, classes=classes.KITTI_DIST)


def dsprites_loc(*, root: str, split: Split, lists: str | None = None, check_counts: bool = True) -> Dataset:
    """dSprites: where the shape is from left to right, 32 places in 16 classes; 73,728 test, read in 15 seconds."""
    return _dsprites("dsprites_loc", X_POSITION, Choice(root, split, lists, check_counts))


def dsprites_ori(*, root: str, split: Split, lists: str | None = None, check_counts: bool = True) -> Dataset:
    """dSprites: how the shape is turned, 40 angles in 16 classes; 73,728 test."""
    return _dsprites("dsprites_ori", ORIENTATION, Choice(root, split, lists, check_counts))


def smallnorb_azimuth(
    *, root: str, split: Split, lists: str | None = None, check_counts: bool = True
) -> Dataset:
    """SmallNORB: from which of 18 sides the toy is seen, by the left camera; 12,150 test."""
    names = classes.SMALLNORB_AZIMUTH
    return _smallnorb("smallnorb_azimuth", AZIMUTH, names, Choice(root, split, lists, check_counts))


def smallnorb_elevation(
    *, root: str, split: Split, lists: str | None = None, check_counts: bool = True
) -> Dataset:
    """SmallNORB: from which of nine heights the toy is seen, by the left camera; 12,150 test."""
    names = classes.SMALLNORB_ELEVATION
    return _smallnorb("smallnorb_elevation", ELEVATION, names, Choice(root, split, lists, check_counts))


def last_below(value: float, thresholds: Sequence[float]) -> int:
    """The position of the last threshold below `value`, in single precision as VTAB compares."""
    below = np.flatnonzero(np.asarray(thresholds, np.float32) < np.float32(value))
    return int(below[-1])


# ---- CLEVR


def _clevr(name: str, label: Callable[[list[float]], int], choice: Choice) -> Dataset:
    task = TASKS[name]
    names = classes.CLEVR_COUNT if name == "clevr_count" else classes.CLEVR_DIST

    def read(places: list[Path]) -> Originals:
        how = "Unpack CLEVR_v1.0.zip of cs.stanford.edu/people/jcjohns/clevr"
        pools = {}
        for stored, theirs in (("train", "train"), ("validation", "val")):
            scenes = f"scenes/CLEVR_{theirs}_scenes.json"
            base = need(task, places, ["CLEVR_v1.0", "clevr/CLEVR_v1.0", "."], scenes, how=how)
            depths = _clevr_depths(base / scenes)
            keys = sorted(depths)
            pools[stored] = files_pool(
                base,
                [f"images/{theirs}/{key}" for key in keys],
                [label(depths[key]) for key in keys],
                keys=keys,
            )
        return Originals(names, pools)

    return load(task, choice, read, classes=names)


def _clevr_depths(path: Path) -> dict[str, list[float]]:
    """The distances of all objects from the camera, by the image's file name."""

    def reduced(node: dict[str, Any]) -> Any:  # at once: whole scenes would take gigabytes
        if "pixel_coords" in node:
            return node["pixel_coords"][2]
        return (node["image_filename"], node["objects"]) if "objects" in node else node

    with reading(path), path.open() as file:
        return dict(json.load(file, object_hook=reduced)["scenes"])


# ---- DMLab


def _parts(places: Sequence[Path], pattern: str) -> list[Path]:
    """The files of the first folder that has some."""
    return next((files for place in places if (files := sorted(place.glob(pattern)))), [])


def _tfrecord_pool(files: list[Path]) -> Pool:
    keys, labels, records = [], [], []
    for number, path in enumerate(files):
        for features in examples(path, texts=("filename",)):
            image, name, label = (features.get(each) for each in ("image", "filename", "label"))
            if not (isinstance(image, Span) and isinstance(name, str) and isinstance(label, int)):
                raise ValueError(f"vtab_dmlab: {path} has records without image, filename and label.")
            keys.append(name)
            labels.append(label)
            records.append((number, image.begin, image.end))
    where = np.array(records, dtype=np.int64).reshape(-1, 3)

    def take(indices: Indices) -> Images:
        chosen = [keys[i] for i in indices]
        return _TfrecordImages(files, where[indices], np.asarray(labels, np.int64)[indices], chosen)

    return Pool(keys, keys, take)


class _TfrecordImages:
    """Encoded images inside TFRecord files."""

    def __init__(self, files: list[Path], where: Indices, labels: Indices, keys: list[str]) -> None:
        self._files, self._labels, self._keys = files, labels, keys
        self._where = where  # file, begin and end of each image [N, 3]

    def __len__(self) -> int:
        return len(self._keys)

    def labels(self, indices: Indices) -> npt.NDArray[np.int64]:
        """Class indices [B]."""
        return self._labels[indices]

    def read(self, index: int) -> bytes:
        """The encoded image."""
        number, begin, end = (int(each) for each in self._where[index])
        with self._files[number].open("rb") as file:
            file.seek(begin)
            return file.read(end - begin)

    def key(self, index: int) -> str:
        """The name in the record."""
        return self._keys[index]

    def name(self, index: int) -> str:
        """The file, the byte, and the name in the record."""
        number, begin, _ = (int(each) for each in self._where[index])
        return f"{self._files[number]}: {self._keys[index]} (at byte {begin:,})"


# ---- KITTI


def kitti_division(mapping: Path) -> dict[str, list[int]]:
    """TFDS' split of the numbered images by drives, a tenth of which go to test and to validation each.

    Source: tensorflow_datasets/object_detection/kitti.py.
    """
    drives: dict[str, list[int]] = {}
    with reading(mapping):
        lines = (mapping / "train_mapping.txt").read_text().splitlines()
        for image, line in enumerate((mapping / "train_rand.txt").read_text().split(",")):
            drives.setdefault(lines[int(line) - 1].split()[1], []).append(image)
    generator = np.random.RandomState(123)
    tenth = max(1, len(drives) // 10)
    test = set(generator.choice(sorted(drives), tenth, replace=False))
    validation = set(generator.choice(sorted(drives.keys() - test), tenth, replace=False))
    of = {"test": test, "validation": validation, "train": drives.keys() - test - validation}
    return {
        stored: sorted(image for drive in of[stored] for image in drives[drive])
        for stored in ("train", "validation", "test")
    }


def _kitti_pool(base: Path, ids: list[int]) -> Pool:
    keys = [f"{image:06}.png" for image in ids]
    files = [f"image_2/{key}" for key in keys]
    labels = [kitti_label(base / "label_2" / f"{image:06}.txt") for image in ids]
    return files_pool(base, files, labels, keys=keys)


def kitti_label(path: Path) -> int:
    """The class of an image by its annotations: type, 10 numbers, x, y, z in metres from the camera, rotation."""
    with reading(path):
        rows = [line.split() for line in path.read_text().splitlines()]
        depths = [float(row[13]) for row in rows if row and row[0] in VEHICLES]
    return last_below(min([*depths, NO_VEHICLE]), KITTI_DISTANCES)


# ---- dSprites and SmallNORB: grey arrays


class _Grey:
    """Grey pixels uint8 [N, H, W] in memory, handed out as RGB."""

    def __init__(self, name: str, pixels: npt.NDArray[np.uint8], labels: Indices, names: list[str]) -> None:
        self._name, self._pixels, self._labels, self._names = name, pixels, labels, names

    def __len__(self) -> int:
        return len(self._pixels)

    def labels(self, indices: Indices) -> npt.NDArray[np.int64]:
        """Class indices [B]."""
        return self._labels[indices]

    def read(self, index: int) -> Pixels:
        """RGB pixels [H, W, 3], all channels the same."""
        return np.repeat(self._pixels[index][:, :, None], 3, axis=2)

    def key(self, index: int) -> str:
        """The split and row."""
        return self._names[index]

    def name(self, index: int) -> str:
        """Which row of what."""
        return f"{self._name} {self._names[index]}"


def _grey_pool(
    path: Path, stored: str, labels: Indices, pixels: Callable[[Indices], npt.NDArray[np.uint8]]
) -> Pool:
    """`pixels` reads rows of `path`, in ascending order [B, H, W]."""
    names = [f"{stored}_{row:06}" for row in range(len(labels))]

    def take(indices: Indices) -> Images:
        return _Grey(str(path), pixels(indices), labels[indices], [names[i] for i in indices])

    return Pool([str(row) for row in range(len(labels))], names, take)


def _dsprites(name: str, column: int, choice: Choice) -> Dataset:
    task = TASKS[name]
    numbers = classes.numbers(task.classes)

    def read(places: list[Path]) -> Originals:
        file = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
        path = need_file(task, places, file, page="github.com/google-deepmind/dsprites-dataset")
        with reading(path), np.load(path) as content:
            latents = content["latents_classes"][:, column]  # 0 ... 31, or 0 ... 39
        per_class = (32 if column == X_POSITION else 40) / task.classes
        labels = (latents // per_class).astype(np.int64)
        return Originals(numbers, {"train": _grey_pool(path, "train", labels, partial(_sprites, path))})

    return load(task, choice, read, classes=numbers)


def _sprites(path: Path, rows: Indices) -> npt.NDArray[np.uint8]:
    """Some of the 737,280 images [B, 64, 64], 0 or 255. The whole array would take 3 GB, so it is read through."""
    with reading(path), zipfile.ZipFile(path) as archive, archive.open("imgs.npy") as file:
        version = np.lib.format.read_magic(file)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        (_, height, width), _, _ = header[version](file)
        return _rows(file, rows, (height, width)) * np.uint8(255)


def _smallnorb(
    name: Literal["smallnorb_azimuth", "smallnorb_elevation"],
    column: int,
    names: list[str],
    choice: Choice,
) -> Dataset:
    task = TASKS[name]

    def read(places: list[Path]) -> Originals:
        pools = {}
        for stored, theirs in NORB_FILES.items():
            dat, info = (
                _norb_file(task, places, f"smallnorb-{theirs}-{kind}.mat") for kind in ("dat", "info")
            )
            with reading(info), _opened(info) as file:
                shape = _norb_shape(file, NORB_INTEGERS)
                columns = np.frombuffer(file.read(), "<i4").reshape(shape)  # [24300, 4]
            labels = columns[:, column].astype(np.int64) // (2 if column == AZIMUTH else 1)  # 0, 2 ... 34
            pools[stored] = _grey_pool(dat, stored, labels, partial(_toys, dat))
        return Originals(names, pools)

    return load(task, choice, read, classes=names)


def _norb_file(task: Task, places: Sequence[Path], file: str) -> Path:
    if find(places, ["."], file) is None:
        file += ".gz"
    return need_file(task, places, file, page="cs.nyu.edu/~ylclab/data/norb-v1.0-small")


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _norb_shape(file: IO[bytes], magic: int) -> tuple[int, ...]:
    """The shape of a matrix, from its header: what its numbers are, how many axes it has, and their lengths."""
    found, axes = struct.unpack("<2i", file.read(8))
    if found != magic:
        raise ValueError(f"it begins with {found:#x} instead of {magic:#x}")
    lengths = struct.unpack(f"<{max(axes, 3)}i", file.read(4 * max(axes, 3)))  # three at least
    return lengths[:axes]


def _toys(path: Path, rows: Indices) -> npt.NDArray[np.uint8]:
    """Some images of the left camera [B, 96, 96]."""
    with reading(path), _opened(path) as file:
        shape = _norb_shape(file, NORB_BYTES)  # [24300, 2, 96, 96]
        return np.ascontiguousarray(_rows(file, rows, shape[1:])[:, 0])


def _rows(file: IO[bytes], rows: Indices, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Some rows of an array of bytes, in ascending order, of a file that can only be read through."""
    size = math.prod(shape)
    found = np.empty((len(rows), *shape), np.uint8)
    first = done = 0
    while done < len(rows):
        block = np.frombuffer(file.read(ROWS_AT_ONCE * size), np.uint8)
        if block.size < size:
            raise EOFError(f"it ends after {first:,} images")
        block = block[: block.size // size * size].reshape(-1, *shape)
        end = int(np.searchsorted(rows, first + len(block)))
        found[done:end] = block[rows[done:end] - first]
        first, done = first + len(block), end
    return found
