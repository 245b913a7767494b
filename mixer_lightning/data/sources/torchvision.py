"""Public data sets in their official archives, unpacked and checked by torchvision.

The archives are downloaded where their licence allows it, or put in place by hand. One process of a machine unpacks,
the others wait for it.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from mixer_lightning.data.sources import Dataset, Images
from mixer_lightning.data.sources.arrays import Arrays
from mixer_lightning.data.sources.folder import FolderImages, class_folders, say_left_out, scan
from mixer_lightning.data.sources.imagenet_archives import ARCHIVES_1K, DEVKIT, class_names, wnid_list
from mixer_lightning.data.sources.names import JPEG_ENDINGS
from mixer_lightning.files import flock

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_SECONDS = 15

T = TypeVar("T")


def cifar10(*, root: str, download: bool) -> Dataset:
    """CIFAR-10: 32x32, 50,000 train, 10,000 test, ten classes."""
    return _cifar("cifar10", root, download)


def cifar100(*, root: str, download: bool) -> Dataset:
    """CIFAR-100: 32x32, 50,000 train, 10,000 test, 100 (fine) classes."""
    return _cifar("cifar100", root, download)


def pets(*, root: str, download: bool) -> Dataset:
    """Oxford-IIIT Pets: 3,680 train ("trainval"), 3,669 test photographs of 37 breeds.

    The Mixer paper's text counts 36 classes; the data set has 37.
    """
    from torchvision.datasets import OxfordIIITPet

    base = _root(root)
    files = {f"oxford-iiit-pet/{url.rpartition('/')[2]}": md5 for url, md5 in OxfordIIITPet._RESOURCES}
    parts = {
        split: obtain("pets", base, files, download, partial(OxfordIIITPet, base, theirs))
        for split, theirs in (("train", "trainval"), ("test", "test"))
    }
    splits: dict[str, Images] = {
        split: _files("pets", part._images, part._labels) for split, part in parts.items()
    }
    return Dataset("pets", list(parts["train"].classes), splits)


def flowers(*, root: str, download: bool) -> Dataset:
    """Oxford Flowers-102: 1,020 train, 1,020 val, 6,149 test photographs of 102 species."""
    from torchvision.datasets import Flowers102

    base = _root(root)
    files = {f"flowers-102/{file}": md5 for file, md5 in Flowers102._file_dict.values()}
    parts = {
        split: obtain("flowers", base, files, download, partial(Flowers102, base, split))
        for split in ("train", "val", "test")
    }
    splits: dict[str, Images] = {
        split: _files("flowers", list(part._image_files), list(part._labels)) for split, part in parts.items()
    }
    return Dataset("flowers", list(Flowers102.classes), splits)


def imagenet1k(*, root: str) -> Dataset:
    """ImageNet-1k (ILSVRC 2012): 1,281,167 train and 50,000 val photographs, 1,000 classes in order of WordNet id.

    `root` holds class folders `train/<wnid>/*.JPEG` and `val/<wnid>/*.JPEG`, or the three official archives, which
    are unpacked into these folders on first use (about 150 GB, hours); val alone is enough to evaluate on. Classes
    carry their first WordNet synonym.
    """
    base = _root(root)
    layout = (
        f"Expected class folders {base}/train/<wnid> and {base}/val/<wnid>, or in {base} the archives "
        f"{', '.join(ARCHIVES_1K.values())}, {DEVKIT} from image-net.org."
    )
    if not base.is_dir():
        raise FileNotFoundError(f"imagenet1k: no folder {base}. {layout}")
    wait_for_others(base)
    present = [
        split for split, tar in ARCHIVES_1K.items() if (base / split).is_dir() or (base / tar).is_file()
    ]
    if "val" not in present:  # which alone is enough to evaluate on
        present = [*ARCHIVES_1K]
    with _locked(base, needed=not all((base / split).is_dir() for split in present)):
        for split in present:
            if (base / split).is_dir():
                continue
            if missing := _missing_1k(base, split):
                raise FileNotFoundError(
                    f"imagenet1k: no {split}/ and no {' or '.join(missing)} in {base}. {layout}"
                )
            _unpack_imagenet(base, split)
    return imagenet1k_folders(base, present)


def imagenet1k_folders(base: Path, splits: Sequence[str]) -> Dataset:
    """These splits of ImageNet-1k, each in the class folders `<base>/<split>/<wnid>`.

    Raises:
        ValueError: the class folders of one are not the thousand, or hold no images.
    """
    wnids = wnid_list("1k")
    for split in splits:
        _check_wnids(base / split, wnids)
    images = {split: scan("imagenet1k", base / split, wnids) for split in splits}
    say_left_out("imagenet1k", images)
    return Dataset("imagenet1k", class_names(wnids), {**images})


# ---- images


def _cifar(name: Literal["cifar10", "cifar100"], root: str, download: bool) -> Dataset:
    from torchvision.datasets import CIFAR10, CIFAR100

    source = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    base = _root(root)
    files = {source.filename: source.tgz_md5}
    train = obtain(name, base, files, download, partial(source, base, train=True))
    test = obtain(name, base, files, download, partial(source, base, train=False))
    return Dataset(
        name,
        list(train.classes),
        {
            "train": Arrays(f"{name} train", train.data, train.targets),
            "test": Arrays(f"{name} test", test.data, test.targets),
        },
    )


def _files(name: str, paths: list[Path], labels: list[int]) -> FolderImages:
    """Images by path, all of which must exist: an interrupted unpacking leaves some out."""
    folder = paths[0].parent
    present = {path.name for path in folder.iterdir()}
    missing = [path.name for path in paths if path.name not in present]
    if missing:
        raise ValueError(
            f"{name}: {folder} lacks {len(missing)} of {len(paths)} images, such as {missing[0]}. "
            "Remove this folder, and the archive is unpacked again."
        )
    return FolderImages(folder, [path.name for path in paths], [int(label) for label in labels])


# ---- obtaining archives


def _root(root: str) -> Path:
    return Path(root).expanduser().absolute()


def obtain(name: str, base: Path, files: dict[str, str], download: bool, source: Callable[..., T]) -> T:
    """`source(download=...)` of torchvision, once its archives `files` (path under `base` -> md5) are there.

    Archives that are there are unpacked even with `download` off. Raises FileNotFoundError naming what is missing.
    """
    from torchvision.datasets.utils import check_integrity

    wait_for_others(base)
    try:
        return source(download=False)
    except (RuntimeError, FileNotFoundError):  # torchvision: not found, incomplete or corrupted
        pass
    missing = [file for file, md5 in files.items() if not check_integrity(base / file, md5)]
    by_hand = "Put " + " and ".join(str(base / file) for file in missing or files) + " in place by hand"
    if missing and not download:
        raise FileNotFoundError(
            f"{name}: {', '.join(missing)} missing under {base} (or with another checksum than the official one), and "
            f"data.download is off. {by_hand}, or set data.download=true."
        )
    if missing:
        log.info("%s: downloading %s to %s", name, ", ".join(missing), base)
    seconds = socket.getdefaulttimeout()
    try:
        with _locked(base, needed=True):
            socket.setdefaulttimeout(CONNECT_TIMEOUT_SECONDS)
            return source(download=True)
    except (OSError, RuntimeError, http.client.HTTPException) as error:  # URLError is an OSError
        doing = "download" if missing else "unpack"
        raise FileNotFoundError(
            f"{name}: could not {doing} it ({error}). {by_hand}, and remove folders there that are half unpacked."
        ) from error
    finally:
        socket.setdefaulttimeout(seconds)


@contextmanager
def _locked(base: Path, *, needed: bool) -> Iterator[None]:
    """Keep other processes of this machine waiting while archives under `base` are fetched and unpacked."""
    if not needed:
        yield
        return
    base.mkdir(parents=True, exist_ok=True)
    with (base / ".lock").open("w", encoding="utf-8") as file:
        flock(file.fileno())
        yield


def wait_for_others(base: Path) -> None:
    """Wait while another process of this machine unpacks archives under `base`: what is there is not all yet."""
    with contextlib.suppress(FileNotFoundError, PermissionError), (base / ".lock").open("rb") as file:
        if not flock(file.fileno(), shared=True, wait=False):
            log.info("waiting for another process, which unpacks archives in %s", base)
            flock(file.fileno(), shared=True)


def _unpack_imagenet(base: Path, split: str) -> None:
    from torchvision.datasets import ImageNet

    log.info("imagenet1k: unpacking %s into %s (hours, once)", split, base / split)
    try:
        ImageNet(base, split)
    except (OSError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"imagenet1k: could not unpack the {split} archive under {base} ({error}). "
            f"Remove {base / split} if it exists, check the archive and start again."
        ) from error


def _missing_1k(base: Path, split: str) -> list[str]:
    """What is not there of what a split is unpacked from; torchvision reads the devkit for train too."""
    return [file for file in (ARCHIVES_1K[split], DEVKIT) if not (base / file).is_file()]


def _check_wnids(split: Path, wnids: list[str]) -> None:
    """ValueError unless the class folders of a split are the thousand of ILSVRC 2012, fully unpacked."""
    with os.scandir(split) as entries:
        loose = next(
            (entry.name for entry in entries if entry.name.lower().endswith((".tar", *JPEG_ENDINGS))), None
        )
    if loose is not None:
        raise ValueError(
            f"imagenet1k: {split} holds {loose} beside its class folders: its images are not sorted into <wnid>/ yet. "
            "Remove it to unpack the official archives anew, or sort them."
        )
    found = class_folders(split)
    unknown, missing = sorted(set(found) - set(wnids)), sorted(set(wnids) - set(found))
    if unknown or missing:
        example = f"{unknown[0]} is not one of them" if unknown else f"{missing[0]} is missing"
        raise ValueError(
            f"imagenet1k: {split} has {len(found):,} class folders instead of the 1,000 of ILSVRC 2012 ({example}). "
            "For other classes use data=folder."
        )
