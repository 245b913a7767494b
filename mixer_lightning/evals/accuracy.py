"""Top-1 and top-5 accuracy, of all images and of each class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from mixer_lightning import results
from mixer_lightning.evals import Predict, Resize, checked_split, eval_splits

if TYPE_CHECKING:
    from mixer_lightning.data.sources import Dataset

TOP_K = (1, 5)  # where there are more classes


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Fraction of images whose label is the first, or among the first five, of the sorted logits; in training the loss.

    splits: which to evaluate; null for all but train.
    crops: the crops to show ("short_side", "square": see eval_resize in data/transforms.py), each with its own figures:
        `val/top1` for short_side, `val/top1_square` for square; null for the recipe's own, called `val/top1`.
    per_class: write per_class_<split>.csv in the run directory, a line for each class.
    at_end: during training, evaluate after the last step only.

    Not torchmetrics', whose ties depend on the device and whose images have one label: elsewhere the results are equal.
    Of an image with several labels, any counts as right. Outcomes of all images are counted in one place, so figures
    depend neither on the number of processes nor on the size of batches. `val/loss` is the loss of the recipe, with its
    smoothing but without mixing and augmentation, the mean over all images.
    """

    splits: list[str] | None = None
    crops: list[Resize] | None = None
    per_class: bool = True
    at_end: bool = False
    uses_head: ClassVar[bool] = True

    def check(self, data: Dataset) -> None:
        """Refuse splits that the data set lacks."""
        other = next((split for split in ("test", "val") if split in eval_splits(data)), None)
        for split in self.splits or []:
            try:
                checked_split(data, split)
            except ValueError as error:
                instead = f"evals={other}" if other else "evals=accuracy for them all"
                raise ValueError(f"{error}. Take {instead}" if eval_splits(data) else str(error)) from error

    def metric_names(self, data: Dataset) -> list[str]:
        """Top-1 and top-5 of each split and crop, and the loss."""
        suffixes = ["_square" if crop == "square" else "" for crop in self.crops or []] or [""]
        kinds = [f"top{k}" for k in TOP_K if k < len(data.classes)] + ["loss"]
        splits = self.splits or eval_splits(data)
        return [f"{split}/{kind}{suffix}" for split in splits for kind in kinds for suffix in suffixes]

    def run(self, predict: Predict) -> Iterator[tuple[str, float]]:
        """`<split>/top1`, `<split>/top5` where there are more than five classes, and in training `<split>/loss`."""
        data = predict.data
        for split in self.splits or eval_splits(data):
            hits: dict[str, Tensor] = {}  # metric -> [N] bool
            losses: dict[str, float] = {}
            crops: list[Resize | None] = [*self.crops] if self.crops else [None]
            for crop in crops:
                batches = predict.logits(split, eval_resize=crop)
                found = predict.all_gather(
                    outcomes(logits, labels, predict.loss) for logits, labels in batches
                )
                place = found[:, 0]  # [N]
                suffix = "_square" if crop == "square" else ""
                if predict.loss is not None:
                    losses[f"loss{suffix}"] = float(found[:, 1].mean())
                hits |= {f"top{k}{suffix}": place < k for k in TOP_K if k < len(data.classes)}
            for name, hit in hits.items():
                yield f"{split}/{name}", int(hit.sum()) / len(hit)
            for name, value in losses.items():
                yield f"{split}/{name}", value
            if self.per_class and predict.folder is not None:
                write_per_class(predict.folder / f"per_class_{split}.csv", data, split, hits)


def outcomes(logits: Tensor, labels: Tensor, loss: Callable[[Tensor, Tensor], Tensor] | None) -> Tensor:
    """The rank of each image and, of a loss, the mean over the batch at each of its images: [B, 1 or 2] float64.

    So the mean over all images is that of the loss, whatever the sizes of the batches.
    """
    columns = [ranks(logits, labels).double()]
    if loss is not None:
        columns.append(loss(logits, labels).double().expand(len(logits)))
    return torch.stack(columns, dim=1)


def ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """How many classes stand before an image's best label [B] or [B, L] (unused places -1) in logits [B, K]: [B].

    Of equal logits the lower class comes first, so that ties are decided alike everywhere; NaN comes before numbers.
    """
    labels = labels.view(len(labels), -1, 1)  # [B, L, 1]
    classes = torch.arange(logits.shape[1], device=logits.device)
    others = logits[:, None, :]  # [B, 1, K]
    own = others.expand(-1, labels.shape[1], -1).gather(2, labels.clamp(min=0))  # [B, L, 1]
    before = ~(others <= own) | ((others == own) & (classes < labels))  # [B, L, K]
    places = before.sum(dim=2).masked_fill(labels[..., 0] < 0, logits.shape[1])  # [B, L]
    return places.min(dim=1).values


def write_per_class(path: Path, data: Dataset, split: str, hits: Mapping[str, Tensor]) -> None:
    """A line for each class: its name, its images, and the fraction of them that was right; empty without images.

    An image with several labels belongs to the class of each.
    """
    images = data.splits[split]
    labels = images.labels(np.arange(len(images))).reshape(len(images), -1)  # [N, L]
    rows, columns = np.nonzero(labels >= 0)  # [M] pairs of image and label
    classes, num_classes = labels[rows, columns], len(data.classes)
    counts = np.bincount(classes, minlength=num_classes)
    right = {
        name: np.bincount(classes[hit.numpy()[rows]], minlength=num_classes) for name, hit in hits.items()
    }
    results.write_rows(
        path,
        [
            {"class": name, "images": int(counts[label])}
            | (
                {metric: int(right[metric][label]) / int(counts[label]) for metric in hits}
                if counts[label]
                else {}
            )
            for label, name in enumerate(data.classes)
        ],
        digits=6,
    )
