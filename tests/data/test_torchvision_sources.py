"""The public data sets from small archives in the official formats; only the checksums are exchanged."""

from __future__ import annotations

import contextlib
import hashlib
import io
import pickle
import tarfile
import threading
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from timm.data import ImageNetInfo
from torchvision import datasets
from torchvision.datasets import imagenet as torchvision_imagenet

from mixer_lightning.data.decode import decode
from mixer_lightning.data.sources import Dataset
from mixer_lightning.data.sources.torchvision import cifar10, cifar100, flowers, imagenet1k, pets
from mixer_lightning.data.splits import choose
from mixer_lightning.files import flock


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def jpeg(shade: int, size=(6, 5)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (shade, shade, shade)).save(file, "JPEG")
    return file.getvalue()


def archive(path: Path, files: dict[str, bytes], mode: str = "w:gz") -> str:
    """Write a tar and return its checksum."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return md5(path.read_bytes())


def labels(data: Dataset, split: str) -> list[int]:
    images = data.splits[split]
    return images.labels(np.arange(len(images))).tolist()


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


# ---- CIFAR


def cifar_batch(first: int, number: int, key: str) -> bytes:
    data = np.repeat(np.arange(first, first + number, dtype=np.uint8)[:, None], 3072, axis=1)
    data[:, 1024:2048] = 7  # green
    return pickle.dumps({"data": data, key: [(first + i) % 10 for i in range(number)]})


def put_cifar10(root: Path, monkeypatch) -> None:
    files = {f"data_batch_{i}": cifar_batch(4 * i, 4, "labels") for i in range(1, 6)}
    files["test_batch"] = cifar_batch(100, 3, "labels")
    files["batches.meta"] = pickle.dumps({"label_names": [f"kind {i}" for i in range(10)]})
    train = [[name, md5(files[name])] for name in list(files)[:5]]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", train)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", md5(files["test_batch"])]])
    monkeypatch.setattr(
        datasets.CIFAR10, "meta", {**datasets.CIFAR10.meta, "md5": md5(files["batches.meta"])}
    )
    path = root / "cifar-10-python.tar.gz"
    checksum = archive(path, {f"cifar-10-batches-py/{name}": content for name, content in files.items()})
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", checksum)


@pytest.mark.parametrize("download", [False, True])
def test_cifar10_from_an_archive_in_place(tmp_path, monkeypatch, download):
    put_cifar10(tmp_path, monkeypatch)
    data = cifar10(root=str(tmp_path), download=download)
    assert data.classes == [f"kind {i}" for i in range(10)]
    assert {split: len(images) for split, images in data.splits.items()} == {"train": 20, "test": 3}
    image = data.splits["train"].read(5)
    assert (image.shape, image.dtype) == ((32, 32, 3), np.uint8)
    assert image[4, 3].tolist() == [9, 7, 9]
    assert labels(data, "train")[5] == 9
    assert labels(data, "test") == [0, 1, 2]
    assert data.splits["test"].name(2) == "cifar10 test row 2"
    assert data.splits["test"].key(2) == "000000002"


def test_cifar100_takes_the_fine_labels(tmp_path, monkeypatch):
    files = {"train": cifar_batch(0, 4, "fine_labels"), "test": cifar_batch(50, 2, "fine_labels")}
    files["meta"] = pickle.dumps({"fine_label_names": [f"fine {i}" for i in range(100)]})
    monkeypatch.setattr(datasets.CIFAR100, "train_list", [["train", md5(files["train"])]])
    monkeypatch.setattr(datasets.CIFAR100, "test_list", [["test", md5(files["test"])]])
    monkeypatch.setattr(datasets.CIFAR100, "meta", {**datasets.CIFAR100.meta, "md5": md5(files["meta"])})
    path = tmp_path / "cifar-100-python.tar.gz"
    monkeypatch.setattr(
        datasets.CIFAR100,
        "tgz_md5",
        archive(path, {f"cifar-100-python/{name}": c for name, c in files.items()}),
    )
    data = cifar100(root=str(tmp_path), download=False)
    assert len(data.classes) == 100
    assert labels(data, "train") == [0, 1, 2, 3]


def test_a_damaged_archive_counts_as_missing(tmp_path, monkeypatch):
    put_cifar10(tmp_path, monkeypatch)
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        FileNotFoundError, match=r"cifar-10-python\.tar\.gz missing .*checksum.*download is off"
    ):
        cifar10(root=str(tmp_path), download=False)


# ---- what is said when archives are missing

PLACES = [
    (cifar10, ["cifar-10-python.tar.gz"]),
    (cifar100, ["cifar-100-python.tar.gz"]),
    (pets, ["oxford-iiit-pet/images.tar.gz", "oxford-iiit-pet/annotations.tar.gz"]),
    (flowers, ["flowers-102/102flowers.tgz", "flowers-102/imagelabels.mat", "flowers-102/setid.mat"]),
]


@pytest.mark.parametrize(("source", "files"), PLACES)
@pytest.mark.parametrize("download", [False, True])
def test_missing_archives_are_named_with_their_places(tmp_path, source, files, download):
    with pytest.raises(FileNotFoundError) as caught:
        source(root=str(tmp_path), download=download)
    message = str(caught.value)
    assert message.startswith(f"{source.__name__}: ")
    for file in files:
        assert str(tmp_path / file) in message
    assert ("no network in tests" in message) == download
    assert ("data.download=true" in message) != download


# ---- Pets


def put_pets(root: Path, monkeypatch) -> None:
    base = root / "oxford-iiit-pet"
    names = [f"{breed}_{i}" for breed in ("Abyssinian", "american_bulldog") for i in (1, 2, 10)]
    images = {f"images/{name}.jpg": jpeg(10 * i) for i, name in enumerate(names)}
    lines = [f"{name} {1 if name[0] == 'A' else 2} 1 1" for name in names]
    annotations = {
        "annotations/trainval.txt": "\n".join(lines[0:2] + lines[3:5]).encode(),
        "annotations/test.txt": "\n".join([lines[2], lines[5]]).encode(),
    }
    checksums = [archive(base / "images.tar.gz", images), archive(base / "annotations.tar.gz", annotations)]
    resources = [
        (url, new) for (url, _), new in zip(datasets.OxfordIIITPet._RESOURCES, checksums, strict=True)
    ]
    monkeypatch.setattr(datasets.OxfordIIITPet, "_RESOURCES", tuple(resources))


def test_pets(tmp_path, monkeypatch):
    put_pets(tmp_path, monkeypatch)
    data = pets(root=str(tmp_path), download=False)
    assert data.classes == ["Abyssinian", "American Bulldog"]
    assert {split: len(images) for split, images in data.splits.items()} == {"train": 4, "test": 2}
    assert labels(data, "train") == [0, 0, 1, 1]
    assert abs(decode(data.splits["test"].read(1)).getpixel((0, 0))[0] - 50) < 3
    assert data.splits["test"].key(1) == "american_bulldog_10.jpg"
    assert data.splits["test"].name(1).endswith("oxford-iiit-pet/images/american_bulldog_10.jpg")


@contextlib.contextmanager
def unpacking(base: Path, path: Path) -> Iterator[None]:
    """As while another process unpacks archives under `base`, `path` last."""
    content = path.read_bytes()
    path.unlink()
    lock = (base / ".lock").open("a")
    flock(lock.fileno())

    def finish() -> None:
        path.write_bytes(content)
        lock.close()

    timer = threading.Timer(0.2, finish)
    timer.start()
    yield
    timer.join()


def test_pets_unpacked_in_part(tmp_path, monkeypatch):
    put_pets(tmp_path, monkeypatch)
    pets(root=str(tmp_path), download=False)
    image = tmp_path / "oxford-iiit-pet/images/Abyssinian_2.jpg"
    with unpacking(tmp_path, image):
        pets(root=str(tmp_path), download=False)
    image.unlink()
    with pytest.raises(ValueError, match=r"pets: .*images lacks 1 of 4 images, such as Abyssinian_2\.jpg"):
        pets(root=str(tmp_path), download=False)
    (tmp_path / "oxford-iiit-pet/annotations/trainval.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"pets: could not unpack it .*trainval\.txt.*half unpacked"):
        pets(root=str(tmp_path), download=False)


# ---- Flowers


def put_flowers(root: Path, monkeypatch) -> None:
    base = root / "flowers-102"
    images = {f"jpg/image_{i:05d}.jpg": jpeg(20 * i) for i in range(1, 8)}
    checksums = {"image": archive(base / "102flowers.tgz", images)}
    savemat(base / "imagelabels.mat", {"labels": np.array([[77, 77, 1, 1, 102, 102, 5]])})
    savemat(base / "setid.mat", {"trnid": [[1, 3]], "valid": [[5, 2]], "tstid": [[4, 6, 7]]})
    for key, file in (("label", "imagelabels.mat"), ("setid", "setid.mat")):
        checksums[key] = md5((base / file).read_bytes())
    theirs = datasets.Flowers102._file_dict
    monkeypatch.setattr(
        datasets.Flowers102,
        "_file_dict",
        {key: (theirs[key][0], checksum) for key, checksum in checksums.items()},
    )


def test_flowers(tmp_path, monkeypatch):
    put_flowers(tmp_path, monkeypatch)
    data = flowers(root=str(tmp_path), download=False)
    assert {split: len(images) for split, images in data.splits.items()} == {"train": 2, "val": 2, "test": 3}
    assert len(data.classes) == 102
    assert data.classes[76] == "passion flower"
    assert labels(data, "train") == [76, 0]


def test_flowers_trained_on_train_and_val(tmp_path, monkeypatch):
    """What the recipe of the flowers does: 2,040 images, and none left to choose by."""
    put_flowers(tmp_path, monkeypatch)
    both = choose(flowers(root=str(tmp_path), download=False), train="train+val")
    assert {split: len(images) for split, images in both.splits.items()} == {"train": 4, "test": 3}
    assert labels(both, "train") == [76, 0, 101, 76]
    assert abs(decode(both.splits["train"].read(2)).getpixel((0, 0))[0] - 100) < 3
    assert both.splits["train"].name(2).endswith("image_00005.jpg")


# ---- ImageNet

WNIDS = ImageNetInfo().label_names()


@pytest.fixture(scope="module")
def imagenet_folders(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("imagenet")
    content = jpeg(0)
    for split in ("train", "val"):
        for wnid in WNIDS:
            (root / split / wnid).mkdir(parents=True)
            (root / split / wnid / f"{wnid}_1.JPEG").write_bytes(content)
    return root


def test_imagenet_class_folders(imagenet_folders):
    data = imagenet1k(root=str(imagenet_folders))
    assert {split: len(images) for split, images in data.splits.items()} == {"train": 1000, "val": 1000}
    assert [data.classes[i] for i in (0, 207, 999)] == ["tench", "golden retriever", "toilet tissue"]
    assert labels(data, "val") == list(range(1000))
    assert data.splits["val"].name(207).endswith("val/n02099601/n02099601_1.JPEG")


def test_imagenet_with_other_folders_or_unsorted_images(imagenet_folders):
    val = imagenet_folders / "val"
    (val / WNIDS[3]).rename(val / "shark")
    with pytest.raises(
        ValueError, match=r"val has 1,000 class folders instead .*\(shark is not one of them\)"
    ):
        imagenet1k(root=str(imagenet_folders))
    (val / "shark").rename(val / WNIDS[3])
    loose = val / "ILSVRC2012_val_00000001.JPEG"
    loose.write_bytes(jpeg(0))
    with pytest.raises(ValueError, match=r"val holds ILSVRC2012_val_00000001\.JPEG beside its class folders"):
        imagenet1k(root=str(imagenet_folders))
    loose.unlink()
    with unpacking(imagenet_folders, next((val / WNIDS[3]).iterdir())):
        assert len(imagenet1k(root=str(imagenet_folders)).splits["val"]) == 1000


@pytest.mark.parametrize("beside", [[], ["ILSVRC2012_devkit_t12.tar.gz"]])
def test_imagenet_with_val_alone_is_there_to_evaluate_on(imagenet_folders, tmp_path, beside):
    """The devkit stays where the archive of val was unpacked with it."""
    (tmp_path / "val").symlink_to(imagenet_folders / "val")
    for name in beside:
        (tmp_path / name).write_bytes(b"")
    data = imagenet1k(root=str(tmp_path))
    assert {split: len(images) for split, images in data.splits.items()} == {"val": 1000}
    assert len(choose(data, training=False).splits["val"]) == 1000
    assert choose(data, training=False, val="none", test="val").splits.keys() == {"test"}
    with pytest.raises(ValueError, match="there is no train split to learn from, only val"):
        choose(data)
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(b"")
    (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match=r"no train/ and no ILSVRC2012_devkit_t12\.tar\.gz in"):
        imagenet1k(root=str(tmp_path))


def test_imagenet_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"imagenet1k: no folder .*/x\. Expected .*train/<wnid>"):
        imagenet1k(root=str(tmp_path / "x"))
    with pytest.raises(FileNotFoundError) as caught:
        imagenet1k(root=str(tmp_path))
    for file in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"):
        assert file in str(caught.value)


def test_imagenet_from_the_official_archives(tmp_path, monkeypatch):
    """Two levels of tars for training, a flat tar for validation, its labels and the names in the devkit."""
    inner = {}
    for i, wnid in enumerate(WNIDS):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as tar:
            info = tarfile.TarInfo(f"{wnid}_7.JPEG")
            content = jpeg(i % 250, size=(2, 2))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        inner[f"{wnid}.tar"] = file.getvalue()
    train = archive(tmp_path / "ILSVRC2012_img_train.tar", inner, "w")
    flat = {f"ILSVRC2012_val_{i + 1:08d}.JPEG": jpeg(i % 250, size=(2, 2)) for i in range(1000)}
    val = archive(tmp_path / "ILSVRC2012_img_val.tar", flat, "w")
    synsets = np.array(
        [(i + 1, wnid, f"name {i}, other", "gloss", 0) for i, wnid in enumerate(WNIDS)],
        dtype=[(key, object) for key in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")],
    )
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets.reshape(-1, 1)})
    truth = "\n".join(str(1000 - i) for i in range(1000))  # image 1 is of the last class
    devkit = archive(
        tmp_path / "ILSVRC2012_devkit_t12.tar.gz",
        {
            "ILSVRC2012_devkit_t12/data/meta.mat": meta.getvalue(),
            "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": truth.encode(),
        },
    )
    names = torchvision_imagenet.ARCHIVE_META
    for key, checksum in (("train", train), ("val", val), ("devkit", devkit)):
        monkeypatch.setitem(names, key, (names[key][0], checksum))
    data = imagenet1k(root=str(tmp_path))
    assert {split: len(images) for split, images in data.splits.items()} == {"train": 1000, "val": 1000}
    assert data.splits["train"].name(5).endswith(f"train/{WNIDS[5]}/{WNIDS[5]}_7.JPEG")
    assert data.splits["val"].name(999).endswith(f"{WNIDS[999]}/ILSVRC2012_val_00000001.JPEG")
    assert imagenet1k(root=str(tmp_path)).classes == data.classes  # unpacked once, read again
