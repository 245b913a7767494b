"""What tells one data set from another: classes, numbers of images, and sums over all keys and labels.

A sum has the same value in whatever order and place the images are stored. Keys often are numbers, so a few images
are also compared by a checksum or their size. For 13 million images in shards it takes seconds: all stands in the
index.

Legend: N images of a split, L labels an image has at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mixer_lightning.data.sources import Dataset, Images, Marked, Stored
from mixer_lightning.data.splits import Joined, Subset
from mixer_lightning.data.stateless_random import hash32, sample_keys

IMAGES_PER_CALL = 2**18
MARKED_IMAGES = 32  # of a split: those whose keys have the smallest hashes
MAX_CHANGED = 0.25  # of these, or one: some may have been repaired


def record(data: Dataset) -> dict[str, Any]:
    """What a run stores about its data, to recognise it wherever it is stored later."""
    return {
        "classes": list(data.classes),
        "images": {split: len(images) for split, images in data.splits.items()},
        "identity": {split: identity(images) for split, images in data.splits.items()},
    }


def identity(images: Images) -> dict[str, Any]:
    """Sums over all keys, and over all keys with their labels, in hexadecimal digits; marks of some images by key."""
    hashes = key_hashes(images)
    keys = labelled = 0
    for first in range(0, len(images), IMAGES_PER_CALL):
        rows = np.arange(first, min(first + IMAGES_PER_CALL, len(images)))
        labels = images.labels(rows).reshape(len(rows), -1)  # [rows, L]
        part = hashes[rows].astype(np.int64)[:, None]
        keys += int(sample_keys(0, part).sum(dtype=np.uint64))
        labelled += int(sample_keys(1, np.concatenate([part, labels], axis=1)).sum(dtype=np.uint64))
    limit = np.partition(hashes, MARKED_IMAGES)[MARKED_IMAGES] if len(hashes) > MARKED_IMAGES else 2**32
    chosen = np.flatnonzero(hashes < limit)
    marks = {str(hashes[row]): mark for row in chosen if (mark := _mark(images, int(row))) is not None}
    return {"keys": f"{keys % 2**64:016x}", "labelled": f"{labelled % 2**64:016x}", "marks": marks}


def key_hashes(images: Images) -> npt.NDArray[np.uint32]:
    """`stateless_random.hash32` of every image's key, [N]."""
    if isinstance(images, Subset):
        return key_hashes(images.images)[images.indices]
    if isinstance(images, Joined):
        return np.concatenate([key_hashes(part) for part in images.parts])
    if isinstance(images, Stored):
        return images.hashes()
    return np.fromiter((hash32(images.key(i)) for i in range(len(images))), np.uint32, len(images))


def _mark(images: Images, index: int) -> int | None:
    """What hardly any other image in this one's place would have; None where that takes reading it."""
    if isinstance(images, Subset):
        return _mark(images.images, int(images.indices[index]))
    if isinstance(images, Joined):
        return _mark(*images.find(index))
    try:
        return images.mark(index) if isinstance(images, Marked) else None
    except (OSError, ValueError):  # it is gone, or a pipe: reading it will say so
        return None


def refuse_another(now: Mapping[str, Any], stored: Mapping[str, Any], run_dir: Path) -> None:
    """Compare a `record` with the one that `run_dir` holds, perhaps of a version that recorded less.

    Raises:
        ValueError: classes, numbers of images, keys, labels or many marks differ.
    """
    what = _other_classes(stored.get("classes"), now["classes"])
    if what is None and stored.get("images", now["images"]) != now["images"]:
        what = f"{_counted(stored['images'])} there, {_counted(now['images'])} here"
    if what is None:
        for split, before in stored.get("identity", {}).items():
            what = what or _other_images(split, before, now["identity"][split])
    if what is not None:
        raise ValueError(
            f"{run_dir} holds a run on other data: {what}.\n"
            "Give this one a name of its own (name=<word>), or delete that directory."
        )


def _other_classes(before: list[str] | None, now: list[str]) -> str | None:
    if before is None or before == now:
        return None
    for there, here in zip(before, now, strict=False):
        if there != here:
            return f"other classes, '{there}' there, '{here}' here"
    return f"{len(before):,} classes there, {len(now):,} here"


def _other_images(split: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """In what the images of a split differ; None where they are the same, but for some that were repaired."""
    if before["keys"] != now["keys"]:
        return f"as many {split} images as here, but others, or under other names"
    if before["labelled"] != now["labelled"]:
        return f"the same {split} images with other labels"
    shared = before["marks"].keys() & now["marks"].keys()
    changed = sum(before["marks"][key] != now["marks"][key] for key in shared)
    if changed > max(1, MAX_CHANGED * len(shared)):
        return f"{split} images of the same names, but {changed} of {len(shared)} looked at are other files"
    return None


def _counted(images: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {split}" for split, count in images.items())
