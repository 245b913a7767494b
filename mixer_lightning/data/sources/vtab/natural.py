"""The seven natural tasks: photographs, and what they show.

Every function reads the original archives of one task, for tasks.py; a message says which are missing.
"""

from __future__ import annotations

import codecs
import os
import pickle
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mixer_lightning.data.sources import Images
from mixer_lightning.data.sources.arrays import Arrays
from mixer_lightning.data.sources.folder import class_folders
from mixer_lightning.data.sources.vtab import classes
from mixer_lightning.data.sources.vtab.originals import (
    by_folder,
    files_pool,
    find,
    matlab,
    need,
    reading,
    unpacked,
)
from mixer_lightning.data.sources.vtab.task import Originals, Pool, Request, Task
from mixer_lightning.data.stateless_random import hash32

if TYPE_CHECKING:
    from mixer_lightning.data.sources import Indices

CALTECH_TRAIN = 30  # images of each class, as is custom on Caltech101
SUN_UNREADABLE = "/c/church/outdoor/sun_bhenjvsvrtumjuri.jpg"  # which TFDS leaves out


def caltech101(request: Request) -> Originals:
    """Caltech101: 102 classes of objects, one of them background; 6,084 test.

    TFDS chose 30 training images of each class at random, out of an order that depended on its file system. Without
    lists, those 30 whose keys have the smallest `stateless_random.hash32` are taken here.
    """
    base = need(
        request.task,
        request.folders,
        ["101_ObjectCategories", "caltech101/101_ObjectCategories", "caltech-101/101_ObjectCategories"],
        "accordion",
        how=f"Unpack {request.task.source}, and 101_ObjectCategories.tar.gz in it",
    )
    train, test = [], []
    for folder in class_folders(base):
        if folder.lower() in classes.CALTECH101:
            names = sorted((f"{folder}/{path.name}" for path in (base / folder).glob("*.jpg")), key=hash32)
            train += names[:CALTECH_TRAIN]
            test += names[CALTECH_TRAIN:]
    pools = {
        stored: files_pool(base, names, by_folder(names, classes.CALTECH101), keys=names)
        for stored, names in (("train", sorted(train)), ("test", sorted(test)))
    }
    return Originals(classes.CALTECH101, pools, random_split="TFDS chose 30 of each class at random")


def cifar100(request: Request) -> Originals:
    """CIFAR-100: 32x32, 100 (fine) classes; 10,000 test."""
    from torchvision.datasets import CIFAR100

    archives = {CIFAR100.filename: CIFAR100.tgz_md5}
    base = unpacked(request, ["cifar-100-python"], "meta", archives, CIFAR100)
    names = list(_unpickled(base / "meta")["fine_label_names"])
    return Originals(names, {stored: _cifar_pool(base, stored) for stored in ("train", "test")})


def dtd(request: Request) -> Originals:
    """Describable Textures, the first of its ten divisions: 47 classes; 1,880 test."""
    from torchvision.datasets import DTD

    archives = {"dtd/dtd-r1.0.1.tar.gz": DTD._MD5}
    base = unpacked(request, ["dtd/dtd", "dtd", "."], "labels/train1.txt", archives, DTD)
    pools = {}
    for stored, theirs in (("train", "train"), ("validation", "val"), ("test", "test")):
        names = (base / "labels" / f"{theirs}1.txt").read_text(encoding="utf-8").split()
        pools[stored] = files_pool(base / "images", names, by_folder(names, classes.DTD), keys=names)
    return Originals(classes.DTD, pools)


def flowers(request: Request) -> Originals:
    """Oxford Flowers-102: 102 species; 6,149 test."""
    from torchvision.datasets import Flowers102

    archives = {f"flowers-102/{file}": md5 for file, md5 in Flowers102._file_dict.values()}
    base = unpacked(request, ["flowers-102", "."], "jpg", archives, Flowers102)
    labels = matlab(base / "imagelabels.mat", "labels")[0].astype(np.int64) - 1  # [8189]
    pools = {}
    for stored, theirs in (("train", "trnid"), ("validation", "valid"), ("test", "tstid")):
        numbers = matlab(base / "setid.mat", theirs)[0].astype(np.int64)
        names = [f"image_{number:05}.jpg" for number in numbers]
        pools[stored] = files_pool(base / "jpg", names, labels[numbers - 1].tolist(), keys=names)
    return Originals(classes.flowers(), pools)


def pets(request: Request) -> Originals:
    """Oxford-IIIT Pets: 37 breeds of cats and dogs; 3,669 test."""
    from torchvision.datasets import OxfordIIITPet

    archives = {f"oxford-iiit-pet/{url.rpartition('/')[2]}": md5 for url, md5 in OxfordIIITPet._RESOURCES}
    base = unpacked(request, ["oxford-iiit-pet", "."], "annotations/trainval.txt", archives, OxfordIIITPet)
    pools = {}
    for stored, theirs in (("train", "trainval"), ("test", "test")):
        path = base / "annotations" / f"{theirs}.txt"
        with reading(path):
            rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            names = [f"{row[0]}.jpg" for row in rows]
            labels = [int(row[1]) - 1 for row in rows]
        pools[stored] = files_pool(base / "images", names, labels, keys=names)
    return Originals(classes.PETS, pools)


def sun397(request: Request) -> Originals:
    """SUN397: 397 kinds of scenes; 21,750 test.

    TFDS made a random split of its own, which it lists in sun397_tfds_tr.txt, _va.txt and _te.txt. With these three
    beside SUN397/, the images are the published ones; without, the split goes by the `hash32` of their keys. TFDS
    stores images of at most 120,000 pixels; here they are read as they are.
    """
    task = request.task
    base = need(task, request.folders, ["SUN397"], "a/abbey", how=f"Unpack {task.source}")
    listed = find([*request.folders, base.parent], ["."], "sun397_tfds_tr.txt")
    if listed is None:
        keys = _sun_by_hash(base, task)
    else:
        files = {"train": "tr", "validation": "va", "test": "te"}
        keys = {
            stored: (listed / f"sun397_tfds_{theirs}.txt").read_text(encoding="utf-8").split()
            for stored, theirs in files.items()
        }
    scenes = sorted({key.rpartition("/")[0] for each in keys.values() for key in each})
    if request.check_counts and len(scenes) != task.classes:
        raise ValueError(f"vtab_sun397: {base} has {len(scenes)} kinds of scenes instead of {task.classes}.")
    label_of = {scene: label for label, scene in enumerate(scenes)}
    pools = {}
    for stored, each in keys.items():
        labels = [label_of[key.rpartition("/")[0]] for key in each]
        pools[stored] = files_pool(base, [key[1:] for key in each], labels, keys=each)
    random_split = (
        "TFDS made the split listed in its sun397_tfds_tr.txt, _va.txt and _te.txt: put them beside SUN397/"
    )
    return Originals(scenes, pools, random_split="" if listed else random_split)


def svhn(request: Request) -> Originals:
    """Street View House Numbers, cropped to 32x32: ten digits; 26,032 test."""
    from torchvision.datasets import SVHN

    pools = {}
    for stored in ("train", "test"):
        _, file, md5 = SVHN.split_list[stored]
        base = unpacked(request, ["."], file, {file: md5}, partial(SVHN, split=stored))
        pools[stored] = _svhn_pool(base / file, stored)
    return Originals(classes.DIGITS, pools)


# ---- files


def _sun_by_hash(base: Path, task: Task) -> dict[str, list[str]]:
    """SUN397's images in three parts of TFDS' sizes, by the hash of their keys, such as "/a/abbey/sun_1.jpg"."""
    keys = [
        f"{folder[len(str(base)) :]}/{name}".replace(os.sep, "/")
        for folder, _, names in os.walk(base)
        for name in names
        if name.startswith("sun_")
    ]
    keys = sorted((key for key in keys if key != SUN_UNREADABLE), key=hash32)
    total = sum(task.sizes.values())
    train, validation = (len(keys) * task.sizes[stored] // total for stored in ("train", "validation"))
    return {
        "train": sorted(keys[:train]),
        "validation": sorted(keys[train : train + validation]),
        "test": sorted(keys[train + validation :]),
    }


# ---- arrays


def _cifar_pool(base: Path, stored: str) -> Pool:
    content = _unpickled(base / stored)
    pixels = content["data"].reshape(-1, 3, 32, 32)
    labels = np.asarray(content["fine_labels"])

    def take(indices: Indices) -> Images:
        chosen = np.ascontiguousarray(pixels[indices].transpose(0, 2, 3, 1))
        return Arrays(f"{base / stored}", chosen, labels[indices], rows=indices.tolist())

    keys = [str(row) for row in range(len(labels))]
    return Pool(keys, [f"{stored}_{row:05}" for row in range(len(labels))], take)


def _unpickled(path: Path) -> dict[str, Any]:
    with reading(path), path.open("rb") as file:
        content: dict[str, Any] = _ArraysOnly(file, encoding="latin1").load()
        return content


class _ArraysOnly(pickle.Unpickler):
    """Containers, texts and NumPy arrays: a pickle could otherwise name any function to be called."""

    def find_class(self, module: str, name: str) -> Any:
        """The few names that arrays are pickled by, in whatever version of NumPy and protocol."""
        known: dict[tuple[str, str], Any] = {
            ("numpy", "dtype"): np.dtype,
            ("numpy", "ndarray"): np.ndarray,
            ("multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
            ("numeric", "_frombuffer"): np.empty(0).__reduce_ex__(5)[0],
            ("_codecs", "encode"): codecs.encode,  # of bytes
        }
        last = module.rpartition(".")[2] if module.startswith(("numpy.core.", "numpy._core.")) else module
        if (last, name) not in known:
            raise pickle.UnpicklingError(f"it names {module}.{name}, and a data set holds no code")
        return known[last, name]


def _svhn_pool(path: Path, stored: str) -> Pool:
    labels = matlab(path, "y").reshape(-1).astype(np.int64) % 10  # 10 stands for 0

    def take(indices: Indices) -> Images:
        pixels = matlab(path, "X")  # [32, 32, 3, N]
        chosen = np.ascontiguousarray(pixels[..., indices].transpose(3, 0, 1, 2))
        return Arrays(f"{path}", chosen, labels[indices], rows=indices.tolist())

    keys = [str(row) for row in range(len(labels))]
    return Pool(keys, [f"{stored}_{row:06}" for row in range(len(labels))], take)
