"""Top-1 on the reassessed labels of ImageNet's validation set ("ReaL": Beyer et al., arXiv 2006.07159).

real.json (google-research/reassessed-imagenet) is a list of 50,000 lists of classes: list i belongs to image number
i + 1, ILSVRC2012_val_%08d.JPEG. A prediction is right if it is in the list; the 3,163 images with an empty list count
neither way. Classes are numbered in the order of their sorted WordNet ids, as class folders are.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mixer_lightning.evals import Predict, eval_split

if TYPE_CHECKING:
    from mixer_lightning.data.sources import Dataset, Images

REAL = "real/top1"
SAMPLE = 100  # images that `check` looks at


@dataclass(frozen=True, kw_only=True)
class Real:
    """Fraction of ImageNet's validation images whose first class is one of those that people see in them.

    split: where these images are; null for test, or val where there is no test.
    labels: a file like real.json; null for the one that timm carries.
    at_end: during training, evaluate after the last step only.
    """

    split: str | None = None
    labels: str | None = None
    at_end: bool = False
    uses_head: ClassVar[bool] = True

    def check(self, data: Dataset) -> None:
        """Refuse other images than ImageNet's, and classes in another order."""
        split = eval_split(data, self.split)
        images, table = data.splits[split], read(self.labels)
        if table.max(initial=-1) >= len(data.classes):
            raise ValueError(
                f"ReaL has classes up to {table.max(initial=-1)}, but {data.name} has {len(data.classes):,}: "
                "it is for ImageNet-1k"
            )
        some = np.unique(np.linspace(0, len(images) - 1, SAMPLE).astype(np.int64))
        wanted = rows_of(images, some, table)  # [B, L]
        labels = images.labels(some).reshape(len(some), -1)[:, :1]
        scored = (wanted >= 0).any(axis=1)
        agree = (wanted == labels).any(axis=1)[scored]
        if agree.sum() * 2 < len(agree):
            raise ValueError(
                f"of {len(agree)} {split} images only {agree.sum()} have a label that ReaL allows, where nine of ten "
                "should: the classes must be in the order of their WordNet ids"
            )

    def metric_names(self, data: Dataset) -> list[str]:
        """One name."""
        return [REAL]

    def run(self, predict: Predict) -> Iterator[tuple[str, float]]:
        """`real/top1`."""
        split = eval_split(predict.data, self.split)
        table = read(self.labels)
        wanted = rows_of(predict.data.splits[split], predict.local_indices(split), table)  # [n, L]

        def outcomes() -> Iterator[Tensor]:
            done = 0
            for logits, _ in predict.logits(split):
                rows = torch.from_numpy(wanted[done : done + len(logits)]).to(predict.device)  # [B, L]
                done += len(logits)
                right = (rows == logits.argmax(dim=1, keepdim=True)).any(dim=1)
                yield torch.stack([right, (rows >= 0).any(dim=1)], dim=1)  # [B, 2]

        right, scored = predict.all_gather(outcomes()).sum(dim=0).tolist()
        if not scored:
            raise ValueError(f"none of the images of {split} has a label in ReaL")
        yield REAL, right / scored


@functools.cache
def read(path: str | None) -> npt.NDArray[np.int64]:
    """The classes of each image number, rows filled up with -1: [50,000, L].

    Raises:
        ValueError: this is no such file.
    """
    file = (
        Path(path).expanduser() if path else resources.files("timm.data") / "_info/imagenet_real_labels.json"
    )
    try:
        lists = json.loads(file.read_text(encoding="utf-8"))
        table = np.full((len(lists), max(map(len, lists))), -1, np.int64)
        for row, classes in zip(table, lists, strict=True):
            row[: len(classes)] = classes
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"labels: cannot read {file} ({error}). Expected real.json of google-research/reassessed-imagenet"
        ) from error
    return table


def rows_of(
    images: Images, indices: npt.NDArray[np.int64], table: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The classes of some images, by the numbers in their keys: [B, L].

    Raises:
        ValueError: a key has no such number.
    """
    numbers = [number_in(images.key(int(index))) for index in indices]
    for index, number in zip(indices, numbers, strict=True):
        if number is None or not 1 <= number <= len(table):
            raise ValueError(
                f"ReaL knows images as ILSVRC2012_val_00000001 to {len(table):08}, and "
                f"'{images.key(int(index))}' ({images.name(int(index))}) is none: it is for ImageNet's validation set, "
                "with its own file names"
            )
    rows: npt.NDArray[np.int64] = table[np.array(numbers, dtype=np.int64) - 1]
    return rows


def number_in(key: str) -> int | None:
    """n01440764/ILSVRC2012_val_00000293.JPEG -> 293; None for other names."""
    found = re.search(r"ILSVRC2012_val_(\d{8})(?!\d)", key)
    return int(found[1]) if found else None
