"""The eight structured tasks: where things are, how many, which way they look. For the parameter see natural.py."""

from __future__ import annotations

import gzip
import json
import math
import struct
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mixer_lightning.data.sources import Images
from mixer_lightning.data.sources.vtab import classes
from mixer_lightning.data.sources.vtab.originals import (
    files_pool,
    find,
    need,
    need_file,
    reading,
)
from mixer_lightning.data.sources.vtab.task import Originals, Pool, Request
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


def clevr_count(request: Request) -> Originals:
    """CLEVR: how many objects there are, 3 to 10; 15,000 test, CLEVR's "val"."""
    return _clevr(request, lambda depths: len(depths) - 3, classes.CLEVR_COUNT)


def clevr_dist(request: Request) -> Originals:
    """CLEVR: how far the nearest object is, in six classes; 15,000 test, CLEVR's "val"."""
    return _clevr(request, lambda depths: last_below(min(depths), CLEVR_DISTANCES), classes.CLEVR_DIST)


def dmlab(request: Request) -> Originals:
    """Frames of DeepMind Lab: {close, far, very far} x {reward, penalty}; 22,735 test."""
    how = f"Unpack {request.task.source}"
    pools = {}
    for stored in ("train", "validation", "test"):
        files = _parts(request.folders, f"dmlab-{stored}.tfrecord*")
        if not files:
            need(request.task, request.folders, ["."], f"dmlab-{stored}.tfrecord", how=how)
        pools[stored] = _tfrecord_pool(files)
    return Originals(classes.numbers(request.task.classes), pools)


def kitti_dist(request: Request) -> Originals:
    """KITTI: how far the nearest car, van or truck is, in three classes, or that there is none; 711 test."""
    page = f"of {request.task.source}"
    inside = ["training", "raw/training", "Kitti/raw/training"]
    base = need(
        request.task, request.folders, inside, "image_2", how=f"Unpack data_object_image_2.zip {page}"
    )
    need(request.task, [base.parent], ["training"], "label_2", how=f"Unpack data_object_label_2.zip {page}")
    how = f"Unpack devkit_object.zip {page}"
    devkit = need(
        request.task, [*request.folders, base.parent], [".", "devkit"], "mapping/train_rand.txt", how=how
    )
    pools = {stored: _kitti_pool(base, ids) for stored, ids in kitti_division(devkit / "mapping").items()}
    return Originals(classes.KITTI_DIST, pools)


def dsprites_loc(request: Request) -> Originals:
    """dSprites: where the shape is from left to right, 32 places in 16 classes; 73,728 test, read in 15 seconds."""
    return _dsprites(request, X_POSITION, num_values=32)


def dsprites_ori(request: Request) -> Originals:
    """dSprites: how the shape is turned, 40 angles in 16 classes; 73,728 test."""
    return _dsprites(request, ORIENTATION, num_values=40)


def smallnorb_azimuth(request: Request) -> Originals:
    """SmallNORB: from which of 18 sides the toy is seen, by the left camera; 12,150 test."""
    return _smallnorb(request, AZIMUTH, classes.SMALLNORB_AZIMUTH)


def smallnorb_elevation(request: Request) -> Originals:
    """SmallNORB: from which of nine heights the toy is seen, by the left camera; 12,150 test."""
    return _smallnorb(request, ELEVATION, classes.SMALLNORB_ELEVATION)


def last_below(value: float, thresholds: Sequence[float]) -> int:
    """The position of the last threshold below `value`, in single precision as VTAB compares."""
    below = np.flatnonzero(np.asarray(thresholds, np.float32) < np.float32(value))
    return int(below[-1])


# ---- CLEVR


def _clevr(request: Request, label: Callable[[list[float]], int], names: list[str]) -> Originals:
    how = f"Unpack {request.task.source}"
    pools = {}
    for stored, theirs in (("train", "train"), ("validation", "val")):
        scenes = f"scenes/CLEVR_{theirs}_scenes.json"
        base = need(request.task, request.folders, ["CLEVR_v1.0", "clevr/CLEVR_v1.0", "."], scenes, how=how)
        depths = _clevr_depths(base / scenes)
        keys = sorted(depths)
        pools[stored] = files_pool(
            base,
            [f"images/{theirs}/{key}" for key in keys],
            [label(depths[key]) for key in keys],
            keys=keys,
        )
    return Originals(names, pools)


def _clevr_depths(path: Path) -> dict[str, list[float]]:
    """The distances of all objects from the camera, by the image's file name."""

    def reduced(node: dict[str, Any]) -> Any:  # at once: whole scenes would take gigabytes
        if "pixel_coords" in node:
            return node["pixel_coords"][2]
        return (node["image_filename"], node["objects"]) if "objects" in node else node

    with reading(path), path.open(encoding="utf-8") as file:
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
        lines = (mapping / "train_mapping.txt").read_text(encoding="utf-8").splitlines()
        for image, line in enumerate((mapping / "train_rand.txt").read_text(encoding="utf-8").split(",")):
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
        rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
        depths = [float(row[13]) for row in rows if row and row[0] in VEHICLES]
    return last_below(min([*depths, NO_VEHICLE]), KITTI_DISTANCES)


# ---- dSprites and SmallNORB: grey arrays


class _Grey:
    """Grey pixels uint8 [N, H, W] in memory, returned as RGB."""

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


def _dsprites(request: Request, column: int, *, num_values: int) -> Originals:
    file = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
    path = need_file(request, file, page=request.task.source)
    with reading(path), np.load(path) as content:
        latents = content["latents_classes"][:, column]  # 0 ... num_values - 1
    labels = (latents // (num_values / request.task.classes)).astype(np.int64)
    pool = _grey_pool(path, "train", labels, partial(_sprites, path))
    return Originals(classes.numbers(request.task.classes), {"train": pool})


def _sprites(path: Path, rows: Indices) -> npt.NDArray[np.uint8]:
    """Some of the 737,280 images [B, 64, 64], 0 or 255. The whole array would take 3 GB, so it is read through."""
    with reading(path), zipfile.ZipFile(path) as archive, archive.open("imgs.npy") as file:
        version = np.lib.format.read_magic(file)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        (_, height, width), _, _ = header[version](file)
        return _rows(file, rows, (height, width)) * np.uint8(255)


def _smallnorb(request: Request, column: int, names: list[str]) -> Originals:
    pools = {}
    for stored, theirs in NORB_FILES.items():
        dat, info = (_norb_file(request, f"smallnorb-{theirs}-{kind}.mat") for kind in ("dat", "info"))
        with reading(info), _opened(info) as file:
            shape = _norb_shape(file, NORB_INTEGERS)
            columns = np.frombuffer(file.read(), "<i4").reshape(shape)  # [24300, 4]
        labels = columns[:, column].astype(np.int64) // (2 if column == AZIMUTH else 1)  # 0, 2 ... 34
        pools[stored] = _grey_pool(dat, stored, labels, partial(_toys, dat))
    return Originals(names, pools)


def _norb_file(request: Request, file: str) -> Path:
    if find(request.folders, ["."], file) is None:
        file += ".gz"
    return need_file(request, file, page=request.task.source)


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
