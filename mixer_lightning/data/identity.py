"""What tells one data set from another: classes, numbers of images, and sums over all keys and labels.

A sum has the same value in whatever order and place the images are stored. Keys often are numbers, so a few images
are also compared by a checksum or their size. For 13 million images in shards it takes seconds: all stands in the
index. Images that a run has named as bad may go, or be repaired: what is recorded says which of them are not there.

Legend: N images of a split, L labels an image has at most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mixer_lightning.data.sources import Dataset, Images, Marked, Stored, Streamed
from mixer_lightning.data.splits import Joined, Subset
from mixer_lightning.data.stateless_random import hash32, sample_keys

IMAGES_PER_CALL = 2**18
MARKED_IMAGES = 32  # of a split: those whose keys have the smallest hashes
MAX_CHANGED = 0.25  # of these: some may have been repaired


def record(data: Dataset, *, bad: Iterable[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """What a run stores about its data, to recognise it wherever it is stored later.

    `bad` are images that the run has named as bad, each its `split` and what `describe` says of it. Those that are gone
    stand under `without`; the others may have been repaired, and are compared by key and labels alone.
    """
    of_split: dict[str, list[Mapping[str, Any]]] = {split: [] for split in data.splits}
    for each in bad:
        of_split.get(each["split"], []).append(each)
    return {
        "classes": list(data.classes),
        "images": {split: len(images) for split, images in data.splits.items()},
        "identity": {split: identity(images, bad=of_split[split]) for split, images in data.splits.items()},
    }


def describe(images: Images, index: int) -> dict[str, Any]:
    """What tells an image from the others of its split once it is gone: the hash of its key, and its labels."""
    return {"key": _key_hash(images, index), "labels": images.labels(np.array([index])).reshape(-1).tolist()}


def without(of_data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The images that are gone according to a `record`, perhaps of a version that recorded less."""
    identities = of_data.get("identity", {})
    return [{"split": split, **each} for split, it in identities.items() for each in it.get("without", [])]


def identity(images: Images, *, bad: Iterable[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Sums over all keys, and over all keys with their labels, in hexadecimal digits; marks of some images by key.

    Those of `bad` (see `record`) have no mark, and `without` says which of them are gone.
    """
    if isinstance(images, Streamed):
        return images.identity()
    hashes = key_hashes(images)
    known_bad = {int(each["key"]): [int(label) for label in each["labels"]] for each in bad}
    gone = np.setdiff1d(np.array([*known_bad], np.uint32), hashes).tolist() if known_bad else []
    keys = labelled = 0
    for first in range(0, len(images), IMAGES_PER_CALL):
        rows = np.arange(first, min(first + IMAGES_PER_CALL, len(images)))
        of_keys, of_labels = _sums(hashes[rows], images.labels(rows).reshape(len(rows), -1))
        keys, labelled = keys + of_keys, labelled + of_labels
    limit = np.partition(hashes, MARKED_IMAGES)[MARKED_IMAGES] if len(hashes) > MARKED_IMAGES else 2**32
    chosen = np.flatnonzero((hashes < limit) & ~np.isin(hashes, list(known_bad)))
    marks = {str(hashes[row]): mark for row in chosen if (mark := _mark(images, int(row))) is not None}
    found = {"keys": f"{keys % 2**64:016x}", "labelled": f"{labelled % 2**64:016x}", "marks": marks}
    return found | ({"without": [{"key": key, "labels": known_bad[key]} for key in gone]} if gone else {})


def _sums(hashes: npt.NDArray[np.uint32], labels: npt.NDArray[np.int64]) -> tuple[int, int]:
    """Sums over images by their keys' hashes [N], and by these with their labels [N, L]."""
    keys = hashes.astype(np.int64)[:, None]
    with_labels = np.concatenate([keys, labels], axis=1)
    return int(sample_keys(0, keys).sum(dtype=np.uint64)), int(
        sample_keys(1, with_labels).sum(dtype=np.uint64)
    )


def key_hashes(images: Images) -> npt.NDArray[np.uint32]:
    """`stateless_random.hash32` of every image's key, [N]."""
    if isinstance(images, Subset):
        return key_hashes(images.images)[images.indices]
    if isinstance(images, Joined):
        return np.concatenate([key_hashes(part) for part in images.parts])
    if isinstance(images, Stored):
        return images.hashes()
    return np.fromiter((hash32(images.key(i)) for i in range(len(images))), np.uint32, len(images))


def _key_hash(images: Images, index: int) -> int:
    """The one of `key_hashes` at an index."""
    if isinstance(images, Subset):
        return _key_hash(images.images, int(images.indices[index]))
    if isinstance(images, Joined):
        return _key_hash(*images.find(index))
    return int(images.hashes()[index]) if isinstance(images, Stored) else hash32(images.key(index))


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
    """Compare a `record` with the one that `run_dir` holds.

    Raises:
        ValueError: they are of different data.
    """
    what = difference(now, stored)
    if what is not None:
        raise ValueError(
            f"{run_dir} holds a run on other data: {what}.\n"
            "Give this one a name of its own (name=<word>), or delete that directory."
        )


def difference(now: Mapping[str, Any], stored: Mapping[str, Any]) -> str | None:
    """In what a `record` of here differs from one of there, perhaps of a version that recorded less.

    None where classes, numbers of images, keys, labels and most marks are the same. Images that are gone after a run
    named them as bad are counted as if they were there.
    """
    what = _other_classes(stored.get("classes"), now["classes"])
    if what is None and "images" in stored and _num_images(stored) != _num_images(now):
        what = f"{_counted(stored['images'])} there, {_counted(now['images'])} here"
    if what is None:
        for split, before in stored.get("identity", {}).items():
            what = what or _other_images(split, before, now["identity"][split])
    return what


def _other_classes(before: list[str] | None, now: list[str]) -> str | None:
    if before is None or before == now:
        return None
    for there, here in zip(before, now, strict=False):
        if there != here:
            return f"other classes, '{there}' there, '{here}' here"
    return f"{len(before):,} classes there, {len(now):,} here"


def _other_images(split: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """In what the images of a split differ; None where they are the same, but for some that were repaired."""
    (keys_before, labelled_before), (keys_now, labelled_now) = _whole_sums(before), _whole_sums(now)
    if keys_before != keys_now:
        return f"as many {split} images as here, but others, or under other names"
    if labelled_before != labelled_now:
        return f"the same {split} images with other labels"
    shared = before["marks"].keys() & now["marks"].keys()
    changed = sum(before["marks"][key] != now["marks"][key] for key in shared)
    if changed > MAX_CHANGED * len(shared):
        return f"{split} images of the same names, but {changed} of {len(shared)} looked at are other files"
    return None


def _whole_sums(of_split: Mapping[str, Any]) -> tuple[int, int]:
    """The sums of an `identity`, with those images that are gone."""
    keys, labelled = int(of_split["keys"], 16), int(of_split["labelled"], 16)
    for each in of_split.get("without", []):
        of_key, of_labels = _sums(np.array([each["key"]], np.uint32), np.array([each["labels"]], np.int64))
        keys, labelled = keys + of_key, labelled + of_labels
    return keys % 2**64, labelled % 2**64


def _num_images(of_data: Mapping[str, Any]) -> dict[str, int]:
    """Images of each split, with those that are gone."""
    gone = Counter(each["split"] for each in without(of_data))
    return {split: count + gone[split] for split, count in of_data["images"].items()}


def _counted(images: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {split}" for split, count in images.items())
