"""The four specialized tasks: images from above, and from inside. For the parameter see natural.py."""

from __future__ import annotations

import csv
import importlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mixer_lightning.data.sources.folder import class_folders
from mixer_lightning.data.sources.vtab import classes
from mixer_lightning.data.sources.vtab.fundus import FundusImages
from mixer_lightning.data.sources.vtab.originals import (
    by_folder,
    files_pool,
    need,
    need_file,
    reading,
    unpacked,
)
from mixer_lightning.data.sources.vtab.task import Originals, Pool, Request

if TYPE_CHECKING:
    from mixer_lightning.data.sources import Indices, Pixels

EUROSAT_MD5 = "c8fa014336c82ac7804f0398fcb19387"  # torchvision has it inside a function


def patch_camelyon(request: Request) -> Originals:
    """PatchCamelyon: 96x96 pixels of lymph nodes, with a tumour in the middle or not; 32,768 test. Needs h5py."""
    how = f"Unpack (gunzip) the six {request.task.source}"
    pools = {}
    for stored, theirs in (("train", "train"), ("validation", "valid"), ("test", "test")):
        files = [f"camelyonpatch_level_2_split_{theirs}_{each}.h5" for each in "xy"]
        x, y = (need(request.task, request.folders, [".", "pcam"], file, how=how) / file for file in files)
        pools[stored] = _camelyon_pool(x, y, theirs)
    return Originals(classes.PATCH_CAMELYON, pools)


def eurosat(request: Request) -> Originals:
    """EuroSAT: 64x64 pixels from Sentinel-2, red, green and blue; ten uses of land; 5,400 test."""
    from torchvision.datasets import EuroSAT

    archives = {"eurosat/EuroSAT.zip": EUROSAT_MD5}
    inside = ["eurosat/2750", "2750", "EuroSAT_RGB", "EuroSAT"]
    base = unpacked(request, inside, "AnnualCrop", archives, EuroSAT)
    return Originals(classes.EUROSAT, {"train": _class_folders_pool(base, classes.EUROSAT)})


def resisc45(request: Request) -> Originals:
    """NWPU-RESISC45: 256x256 pixels from above; 45 kinds of places; 6,300 test."""
    how = f"Unpack {request.task.source}"
    base = need(request.task, request.folders, ["NWPU-RESISC45", "."], "airplane", how=how)
    return Originals(classes.RESISC45, {"train": _class_folders_pool(base, classes.RESISC45)})


def diabetic_retinopathy(request: Request) -> Originals:
    """Kaggle's diabetic retinopathy: five grades of the disease; 42,670 test, those of the private leaderboard.

    Photographs are processed as fundus.py says whenever they are read, which takes longer than anything else here;
    `process` off leaves them as they are, for images that are processed already.
    """
    page = f"{request.task.source}, with the images in train/ and test/ beside it"
    pools = {}
    for stored, folder, table, usage in (
        ("train", "train", "trainLabels.csv", None),
        ("validation", "test", "retinopathy_solution.csv", "Public"),
        ("test", "test", "retinopathy_solution.csv", "Private"),
    ):
        path = need_file(request, table, page=page)
        grades = _grades(path, usage=usage)
        files = [f"{folder}/{name}.jpeg" for name in grades]
        pool = files_pool(path.parent, files, list(grades.values()), keys=list(grades))
        pools[stored] = _processed(pool) if request.process else pool
    return Originals(classes.DIABETIC_RETINOPATHY, pools)


# ---- files


def _class_folders_pool(base: Path, names_of_classes: list[str]) -> Pool:
    """Files in class folders, which TFDS calls by class and file name: "Forest_Forest_1.jpg"."""
    files = [
        f"{folder}/{path.name}"
        for folder in class_folders(base)
        if folder in names_of_classes
        for path in sorted((base / folder).glob("*.jpg"))
    ]
    keys = [file.replace("/", "_") for file in files]
    return files_pool(base, files, by_folder(files, names_of_classes), keys=keys)


def _grades(path: Path, *, usage: str | None) -> dict[str, int]:
    """The grade of each image, by name; of one leaderboard only, where `usage` says so."""
    with reading(path), path.open(newline="", encoding="utf-8") as file:
        return {
            row["image"]: int(row["level"])
            for row in csv.DictReader(file)
            if usage is None or row["Usage"] == usage
        }


def _processed(pool: Pool) -> Pool:
    return Pool(pool.keys, pool.names, lambda indices: FundusImages(pool.take(indices)))


# ---- HDF5


def _camelyon_pool(x: Path, y: Path, theirs: str) -> Pool:
    with _hdf5(y) as file:
        labels = np.asarray(file["y"]).reshape(-1).astype(np.int64)
    keys = [f"{theirs}_{row}" for row in range(len(labels))]
    return Pool(keys, keys, lambda indices: _Hdf5Images(x, indices, labels[indices], theirs))


def _hdf5(path: Path) -> Any:
    try:
        h5py = importlib.import_module("h5py")  # not among the requirements
    except ImportError as error:
        raise ValueError(
            f"vtab_patch_camelyon: to read {path.name}, install h5py: pip install h5py"
        ) from error
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise ValueError(
            f"vtab_patch_camelyon: cannot read {path} ({error}). Unpack its archive again."
        ) from error


class _Hdf5Images:
    """Rows of the data set "x" of a file, read one by one."""

    def __init__(self, path: Path, rows: Indices, labels: Indices, theirs: str) -> None:
        self._path, self._rows, self._labels, self._theirs = path, rows, labels, theirs
        self._open: dict[int, Any] = {}  # by process: HDF5 files do not survive a fork
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._rows)

    def labels(self, indices: Indices) -> npt.NDArray[np.int64]:
        """Class indices [B]."""
        return self._labels[indices]

    def read(self, index: int) -> Pixels:
        """RGB pixels [96, 96, 3]."""
        with self._lock:
            if os.getpid() not in self._open:
                self._open[os.getpid()] = _hdf5(self._path)
            pixels: Pixels = np.asarray(self._open[os.getpid()]["x"][int(self._rows[index])])
        return pixels

    def key(self, index: int) -> str:
        """The row, as TFDS writes it."""
        return f"{self._theirs}_{self._rows[index]}"

    def name(self, index: int) -> str:
        """Which row of what."""
        return f"{self._path} row {self._rows[index]}"

    def __getstate__(self) -> dict[str, Any]:
        """Processes that are spawned open the file themselves."""
        return {**self.__dict__, "_open": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())
