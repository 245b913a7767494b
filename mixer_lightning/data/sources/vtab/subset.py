"""The 800, the 200 and the test images of a task, out of extracted data or out of the originals.

VTAB-1k takes the first images in the order in which TFDS stores a split. That order is known: TFDS sorts by the MD5
of the split's name and the image's key, and keys are file names or row numbers. So the published thousand can be found
in the originals, except where TFDS split them at random.

Legend: B images chosen out of a split.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mixer_lightning.data.sources import Dataset, Images
from mixer_lightning.data.sources.folder import FolderImages
from mixer_lightning.data.sources.vtab import classes
from mixer_lightning.data.sources.vtab.originals import refuse_missing
from mixer_lightning.data.sources.vtab.task import NUM_TRAIN, NUM_VAL, Originals, Pool, Request, Split, Task
from mixer_lightning.data.splits import Joined, Subset

if TYPE_CHECKING:
    from mixer_lightning.data.sources import Indices

log = logging.getLogger(__name__)


class ListRow(NamedTuple):
    """One image of a list."""

    name: str
    label: int | None


class Lists(NamedTuple):
    """Images by name: "train800", "val200", "train800val200" and "test", or some of them."""

    source: Path  # a folder of .txt files, or one .json file
    of: dict[str, list[ListRow]]


def load(request: Request) -> Dataset:
    """A task with the splits "train" and "test", and with "val" if the split asked for is "train800".

    Raises FileNotFoundError or ValueError: something is missing, damaged, or not of the published size.
    """
    task, name = request.task, f"vtab_{request.task.name}"
    if request.split not in ("train800", "trainval1000"):
        raise ValueError(f"{name}: data.split is {request.split!r}; choose train800 or trainval1000.")
    found = _lists(task, request.folders, request.lists)
    if found is not None and _is_extracted(found):
        parts = _extracted(task, found, request.split)
        names = classes.of_task(task.name, task.classes)
        log.info("%s: the extracted images in %s", name, found.source)
    else:
        try:
            originals = task.read(request)
            parts = _out_of_originals(request, originals, found)
            names = originals.classes
        except FileNotFoundError as error:
            extracted = request.root / task.name / "train800.txt"
            raise FileNotFoundError(
                f"{error} Or put extracted vtab-1k data in place, so that {extracted} exists."
            ) from error
    _check_counts(request, parts)
    return Dataset(name, names, parts, label_changes_with=task.label_changes_with)


# ---- the order of TFDS


def stored_order(split: str, keys: Sequence[str]) -> Indices:
    """Positions of the images of a split in the order in which TFDS stores them [N].

    Source: tensorflow_datasets/core/hashing.py and shuffle.py.
    """
    salted = hashlib.md5(split.encode(), usedforsecurity=False)
    digests = bytearray()
    for key in keys:
        hashed = salted.copy()
        hashed.update(key.encode(errors="surrogateescape"))
        digests += hashed.digest()
    halves = np.frombuffer(digests, ">u8").reshape(-1, 2)
    return np.lexsort((halves[:, 1], halves[:, 0])).astype(np.int64)


def slices(task: Task, counts: dict[str, int]) -> dict[str, tuple[str, int, int]]:
    """Of "train", "val" and "test": the split of TFDS, and the positions where they begin and end there.

    Where splits do not have their published size, the positions are shifted in proportion.
    """

    def shifted(split: str, position: int) -> int:
        return position * counts[split] // task.sizes[split]

    (val, first_val), (test, first_test) = task.val, task.test
    begins = {"train": ("train", 0), "val": (val, first_val), "test": (test, first_test)}
    at = {part: (split, shifted(split, position)) for part, (split, position) in begins.items()}
    found = {}
    for part, most in (("train", NUM_TRAIN), ("val", NUM_VAL), ("test", None)):
        split, begin = at[part]
        ends = [end for other, end in at.values() if other == split and end > begin] + [counts[split]]
        end = min(ends) if most is None else min(*ends, begin + most)
        found[part] = (split, begin, end)
    return found


# ---- extracted data


def _is_extracted(lists: Lists) -> bool:
    """Whether the lists name images beside them, there or not, and not originals elsewhere."""
    first = next(((kind, lines[0].name) for kind, lines in lists.of.items() if lines), None)
    if first is None or not lists.source.is_dir():
        return False
    kind, name = first
    return name.startswith(f"images/{kind}/") or (lists.source / name).is_file()


def _extracted(task: Task, lists: Lists, split: Split) -> dict[str, Images]:
    named = _named(task, lists, split)
    if "test" not in named:
        raise FileNotFoundError(
            f"vtab_{task.name}: no {lists.source / 'test.txt'} beside the lists of training images."
        )
    parts: dict[str, Images] = {}
    for part, lines in named.items():
        labels = [-1 if line.label is None else line.label for line in lines]
        for line, label in zip(lines, labels, strict=True):
            if not 0 <= label < task.classes:
                raise ValueError(
                    f"vtab_{task.name}: in {lists.source}, {line.name} has no label or one that is not below "
                    f"{task.classes}. Expected lines of an image and its label, images/test/000000.jpg 0."
                )
        files = [line.name for line in lines]
        refuse_missing(lists.source, files)
        parts[part] = FolderImages(lists.source, files, labels)
    return parts


# ---- the originals


def _out_of_originals(request: Request, originals: Originals, lists: Lists | None) -> dict[str, Images]:
    """The parts as subsets of what is taken from the pools. An image's number is its place in all pools together."""
    task, name, pools = request.task, f"vtab_{request.task.name}", originals.pools
    for stored, pool in pools.items():
        if request.check_counts and len(pool.keys) != task.sizes[stored]:
            raise _wrong_count(task, f"the originals' {stored} split", len(pool.keys), task.sizes[stored])
    chosen = _first_ones(task, pools)
    named: dict[str, list[ListRow]] = {}
    if lists is not None:
        apart = {"train800", "val200"} <= lists.of.keys()
        named = _named(task, lists, "train800" if apart else request.split)
        if originals.random_split and "test" not in named:
            raise ValueError(
                f"{name}: {lists.source} names images for training, but none for testing, which cannot be known from "
                f"them ({originals.random_split}). Give test.txt too, or no lists."
            )
        chosen = {"test": chosen["test"]} | {
            part: _resolve(task, pools, lists, part, lines) for part, lines in named.items()
        }
        log.info("%s: the images that %s names", name, lists.source)
    elif originals.random_split:
        log.warning(
            "%s: not the published images, but a split by a rule of ours. %s", name, originals.random_split
        )
    else:
        log.info("%s: the published images, found in the originals by their keys", name)

    numbers = np.concatenate(list(chosen.values()))
    union = np.unique(numbers)
    if len(union) < len(numbers):
        raise ValueError(f"{name}: the lists name an image twice, or one that is for testing.")
    images = _taken(pools, union)
    at = {part: np.searchsorted(union, which) for part, which in chosen.items()}
    for part, lines in named.items():
        _refuse_other_labels(task, lines, images.labels(at[part]))
    if request.split == "trainval1000" and "val" in at:
        at["train"] = np.concatenate([at["train"], at.pop("val")])
    return {part: Subset(images, np.sort(at[part])) for part in ("train", "val", "test") if part in at}


def _first_ones(task: Task, pools: dict[str, Pool]) -> dict[str, Indices]:
    """The published choice of "train", "val" and "test", each by number [B]."""
    at = slices(task, {stored: len(pool.keys) for stored, pool in pools.items()})
    order = {stored: first + stored_order(stored, pools[stored].keys) for stored, first in _firsts(pools)}
    return {part: order[stored][begin:end] for part, (stored, begin, end) in at.items()}


def _taken(pools: dict[str, Pool], numbers: Indices) -> Images:
    """The images with some numbers, in ascending order; no pool is read more than once."""
    taken = []
    for stored, first in _firsts(pools):
        inside = numbers[(numbers >= first) & (numbers < first + len(pools[stored].keys))] - first
        if len(inside):
            taken.append(pools[stored].take(inside))
    return taken[0] if len(taken) == 1 else Joined(taken)


def _firsts(pools: dict[str, Pool]) -> list[tuple[str, int]]:
    """The number of the first image of each pool."""
    lengths = [len(pool.keys) for pool in pools.values()]
    return list(zip(pools, accumulate(lengths[:-1], initial=0), strict=True))


def _refuse_other_labels(task: Task, lines: list[ListRow], labels: Indices) -> None:
    """The labels in a list must be those of the originals."""
    for line, label in zip(lines, labels, strict=True):
        if line.label is not None and line.label != label:
            raise ValueError(
                f"vtab_{task.name}: the list gives {line.name} the label {line.label}, but the originals say {label}. "
                "The list is for another version of the data, or counts classes differently."
            )


# ---- lists


def _lists(task: Task, places: list[Path], lists: str | None) -> Lists | None:
    """The lists that `lists` leads to; else those in the folders of the task, if there are any."""
    if lists is not None:
        source = Path(lists).expanduser().absolute()
        if not source.exists():
            raise FileNotFoundError(f"vtab_{task.name}: data.lists={lists} does not exist.")
        if source.is_file():
            return _from_json(task, source)
        places = [*(source / folder for folder in task.folders), source]
    for place in places:
        texts = {kind: place / f"{kind}.txt" for kind in ("train800", "val200", "train800val200", "test")}
        present = {kind: _from_text(path) for kind, path in texts.items() if path.is_file()}
        if present.keys() - {"test"}:
            return Lists(place, present)
    if lists is not None:
        raise FileNotFoundError(
            f"vtab_{task.name}: no train800.txt in data.lists={lists} or in {task.name}/ there."
        )
    return None


def _from_text(path: Path) -> list[ListRow]:
    """Lines of a name and, where they have one, a label."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        name, _, label = text.strip().rpartition(" ")
        if name and label.isdecimal():
            lines.append(ListRow(name.strip(), int(label)))
        elif text.strip():
            lines.append(ListRow(text.strip(), None))
    return lines


def _from_json(task: Task, path: Path) -> Lists:
    """Lists by task: {"dtd": {"train800": [names], "val200": [names]}}, or {"dtd": [names]}, the 800 first."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"vtab_{task.name}: {path} is not JSON: {error}") from error
    expected = f'Expected {{"{task.name}": {{"train800": [names], "val200": [names]}}}}.'
    if not isinstance(content, dict):
        raise ValueError(f"vtab_{task.name}: {path} holds no lists by task. {expected}")
    # Visual Prompt Tuning writes vtab-kitti(task="closest_vehicle_distance")
    bare = {re.sub(r"^vtab[-_]|[(\[].*", "", key): value for key, value in content.items()}
    lists = next((bare[folder] for folder in task.folders if folder in bare), None)
    if isinstance(lists, list):
        most = len(lists) * NUM_TRAIN // (NUM_TRAIN + NUM_VAL)
        lists = {"train800": lists[:most], "val200": lists[most:]}
    if not isinstance(lists, dict) or not all(isinstance(names, list) for names in lists.values()):
        raise ValueError(f"vtab_{task.name}: {path} has no lists for this task. {expected}")
    kinds = {"train": "train800", "val": "val200"}
    return Lists(
        path,
        {
            kinds.get(kind, kind): [ListRow(str(name), None) for name in names]
            for kind, names in lists.items()
        },
    )


def _named(task: Task, lists: Lists, split: Split) -> dict[str, list[ListRow]]:
    """What the lists say of "train", "val" (where it is apart) and "test" (where they do)."""
    of = lists.of
    if split == "train800":
        needed = ["train800", "val200"]
        found = {"train": of.get("train800", []), "val": of.get("val200", [])}
    else:
        needed = [] if "train800val200" in of else ["train800", "val200"]
        found = {"train": of.get("train800val200") or of.get("train800", []) + of.get("val200", [])}
    absent = [f"{kind}.txt" if lists.source.is_dir() else kind for kind in needed if kind not in of]
    if absent:
        raise FileNotFoundError(
            f"vtab_{task.name}: {lists.source} lacks {' and '.join(absent)}, needed for split={split}."
        )
    return found | ({"test": of["test"]} if "test" in of else {})


def _resolve(task: Task, pools: dict[str, Pool], lists: Lists, part: str, lines: list[ListRow]) -> Indices:
    """Numbers of the images that a list names, whole or in short.

    Whole names are looked for in the split from which VTAB takes the part, then in the others: rows may have the same
    number in several. Names in short, without folders or a suffix, must belong to one image only.
    """
    home = {"train": "train", "val": task.val[0], "test": task.test[0]}[part]
    whole: dict[str, int] = {}
    short: dict[str, set[int]] = {}
    for stored, first in sorted(_firsts(pools), key=lambda each: each[0] != home):
        for number, texts in enumerate(
            zip(pools[stored].keys, pools[stored].names, strict=True), start=first
        ):
            for text in {text.lstrip("/") for text in texts}:
                whole.setdefault(text, number)
                for shorter in {text.rpartition("/")[2], text.rpartition("/")[2].partition(".")[0]}:
                    short.setdefault(shorter, set()).add(number)
    numbers: list[int] = []
    for line in lines:
        text = line.name.lstrip("/")
        found = {whole[text]} if text in whole else short.get(text, set())
        if len(found) != 1:
            why = f"names {len(found)} images" if found else "is not among the originals"
            example = " ".join(pools[home].names[:1])
            raise ValueError(
                f"vtab_{task.name}: {line.name} in {lists.source} {why}. Names are written like {example}."
            )
        numbers += found
    return np.array(numbers, dtype=np.int64)


# ---- counts


def _check_counts(request: Request, parts: dict[str, Images]) -> None:
    """ValueError unless every part has its published size, or any size if `check_counts` is off."""
    task = request.task
    train = NUM_TRAIN if request.split == "train800" else NUM_TRAIN + NUM_VAL
    published = {"train": train, "val": NUM_VAL, "test": task.num_test}
    for part, images in parts.items():
        if len(images) == 0:
            raise ValueError(f"vtab_{task.name}: no image is left for {part}.")
        if request.check_counts and len(images) != published[part]:
            raise _wrong_count(task, f"the {part} split", len(images), published[part])


def _wrong_count(task: Task, what: str, found: int, published: int) -> ValueError:
    return ValueError(
        f"vtab_{task.name}: {what} has {found:,} images, but {published:,} were published. "
        "Unpack the data again, or use what is there with data.check_counts=false."
    )
