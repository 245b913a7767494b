"""What image-net.org hands out: names of its archives, what lies in them, and WordNet ids in the order of labels.

ImageNet-1k: ILSVRC2012_img_train.tar (a tar per class inside), ILSVRC2012_img_val.tar (flat; its labels are in
ILSVRC2012_devkit_t12.tar.gz). ImageNet-21k: fall11_whole.tar and winter21_whole.tar.gz (a tar per class inside, or
these class tars in a folder), imagenet21k_resized.tar.gz (class folders inside).
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from collections.abc import Sequence
from pathlib import Path

from mixer_lightning.data.sources.archives import ArchiveStream, archive_members

#: Archives of ImageNet-1k by split, and where the labels of val are.
ARCHIVES_1K = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"

#: Archives of ImageNet-21k, and the releases that each may be.
ARCHIVES_21K = {
    "fall11_whole.tar": ("fall11",),
    "winter21_whole.tar.gz": ("winter21",),
    "winter21_whole.tar": ("winter21",),
    "imagenet21k_resized.tar.gz": ("winter21_p", "fall11_p"),
    "imagenet21k_resized.tar": ("winter21_p", "fall11_p"),
}
VARIANTS = tuple(sorted({variant for each in ARCHIVES_21K.values() for variant in each}))
#: Folders of imagenet21k_resized.tar.gz, and their splits; None: not read.
SPLIT_FOLDERS_21K: dict[str, str | None] = {
    "imagenet21k_train": "train",
    "imagenet21k_val": "val",
    "imagenet21k_small_classes": None,
}

#: fall11 and winter21 have no val: the share to hold out, as big_vision's 25,600 images of fall11.
VAL_SHARE_21K = 25_600 / 14_197_122

#: Lists of WordNet ids that come with timm, by the name that `classes=` takes.
BUNDLED = {
    "google": "imagenet21k_goog_synsets.txt",  # 21,843: the head of Google's checkpoints
    "fall11": "imagenet22k_synsets.txt",  # 21,841
    "fall11_p": "imagenet21k_miil_synsets.txt",  # 11,221
    "winter21_p": "imagenet21k_miil_w21_synsets.txt",  # 10,450
    "12k": "imagenet12k_synsets.txt",  # 11,821, a subset of fall11
    "1k": "imagenet_synsets.txt",
}
#: The order of labels of fall11 and winter21, whose classes are all in it: data and checkpoints of 21,843 agree.
DEFAULT_LIST_21K = "google"


def needed_1k(split: str) -> tuple[str, ...]:
    """Archives of ImageNet-1k that a split takes."""
    return (ARCHIVES_1K[split],) if split == "train" else (ARCHIVES_1K[split], DEVKIT)


def read_devkit(path: Path) -> tuple[list[str], list[str]]:
    """WordNet ids in the order of labels (sorted), and the id of each validation image in the order of their numbers.

    Raises:
        ValueError: the archive lacks one of its two tables or they do not fit each other.
    """
    from scipy.io import loadmat

    tables = {}
    try:
        with contextlib.closing(ArchiveStream(path)) as stream:
            for file in archive_members(stream, str(path)):
                name = file.name.rpartition("/")[2]
                if name in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt"):
                    tables[name] = file.read()
        synsets = loadmat(io.BytesIO(tables["meta.mat"]), squeeze_me=True)["synsets"]
        wnid_of = {int(row[0]): str(row[1]) for row in synsets if int(row[4]) == 0}  # 4: number of children
        numbers = tables["ILSVRC2012_validation_ground_truth.txt"].split()
        truth = [wnid_of[int(number)] for number in numbers]
    except (KeyError, IndexError, OSError, EOFError, ValueError) as error:
        raise ValueError(f"cannot read {path} ({error}). Fetch it again from image-net.org.") from error
    return sorted(wnid_of.values()), truth


def wnid_list(name: str) -> list[str]:
    """One of the lists of WordNet ids that come with timm."""
    return (_timm_folder() / BUNDLED[name]).read_text(encoding="utf-8").split()


def class_names(wnids: Sequence[str]) -> list[str]:
    """The first WordNet synonym of each id: n01440764 is 'tench'. An unknown id stands for itself."""
    text = (_timm_folder() / "imagenet_synset_to_lemma.txt").read_text(encoding="utf-8")
    synonyms = dict(line.split("\t", 1) for line in text.splitlines())
    return [synonyms.get(wnid, wnid).split(",")[0] for wnid in wnids]


def wnids_of(classes: Sequence[str]) -> list[str] | None:
    """The WordNet id of each class that is called so, or by its first synonym; None where that of one is not known.

    Synonyms are those of one of the bundled lists, all in its order, or some of ImageNet-1k's thousand. Two of these,
    crane and maillot, are of two classes each, and do not say which is meant.
    """
    if all(map(is_wnid, classes)):
        return list(classes)
    for name in BUNDLED:
        wnids = wnid_list(name)
        if len(wnids) == len(classes) and class_names(wnids) == list(classes):
            return wnids
    thousand = wnid_list("1k")
    names = class_names(thousand)
    wnid_of = {name: wnid for name, wnid in zip(names, thousand, strict=True) if names.count(name) == 1}
    found = [each if is_wnid(each) else wnid_of.get(each) for each in classes]
    return [each for each in found if each is not None] if None not in found else None


def googles_order_missed(classes: Sequence[str]) -> str | None:
    """How classes differ from Google's 21,843 where they are as many, and by name or id none but these; else None.

    Numbers stand for classes without a name.
    """
    google = wnid_list("google")
    if len(classes) != len(google):
        return None
    names = google if any(map(is_wnid, classes)) else class_names(google)
    named = {each for each in classes if not each.isdigit()}
    if list(classes) == names or not named or not named <= set(names):
        return None
    there, here = next((a, b) for a, b in zip(names, classes, strict=True) if a != b)
    return (
        f"the {len(google):,} classes of ImageNet-21k in another order than Google's ('{there}' there, '{here}' here), "
        "which is what mixer prepare writes with classes=google"
    )


def _timm_folder() -> Path:
    spec = importlib.util.find_spec("timm")  # importing it would take seconds
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "data" / "_info"


def is_wnid(name: str) -> bool:
    """Whether a name is a WordNet id: n01440764."""
    return re.fullmatch(r"n\d{8}", name) is not None
