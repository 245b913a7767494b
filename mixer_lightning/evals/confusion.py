"""Which classes are taken for which, and the images that were misjudged most surely."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from mixer_lightning import results
from mixer_lightning.evals import Predict, eval_split
from mixer_lightning.files import atomic_write
from mixer_lightning.ranges import PositiveInt

if TYPE_CHECKING:
    from mixer_lightning.data.sources import Dataset

log = logging.getLogger(__name__)

MISCLASSIFIED_CSV = "misclassified.csv"


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Writes confusion.npz and misclassified.csv into the run directory; reports/confusion.py draws them.

    split: which to look at; null for test, or val where there is no test.
    max_classes: with more, or where images have several labels, nothing is done: nobody could read it.
    examples: so many misclassified images are kept to be shown, those with the surest wrong prediction.
    at_end: during training, after the last step only.
    """

    split: str | None = None
    max_classes: PositiveInt = 200
    examples: PositiveInt = 25
    at_end: bool = True
    uses_head: ClassVar[bool] = True

    def check(self, data: Dataset) -> None:
        """Refuse a split that the data set lacks."""
        eval_split(data, self.split)

    def metric_names(self, data: Dataset) -> list[str]:
        """None."""
        return []

    def run(self, predict: Predict) -> Iterator[tuple[str, float]]:
        """No figures."""
        data = predict.data
        split = eval_split(data, self.split)
        images = data.splits[split]
        several = images.labels(np.arange(1)).ndim > 1
        if len(data.classes) > self.max_classes:
            log.info(
                f"confusion: no picture of {len(data.classes):,} classes (max_classes={self.max_classes})"
            )
        elif several:
            log.info("confusion: no picture of images with several labels")
        else:
            found = predict.all_gather(surest(logits) for logits, _ in predict.logits(split))  # [N, 2]
            if predict.folder is not None:
                self._write(predict.folder, predict, split, found)
        yield from ()

    def _write(self, folder: Path, predict: Predict, split: str, found: Tensor) -> None:
        data = predict.data
        images, classes = data.splits[split], data.classes
        labels = images.labels(np.arange(len(images)))
        predicted, probability = found[:, 0].numpy().astype(np.int64), found[:, 1].numpy()
        matrix = multiclass_confusion_matrix(
            torch.from_numpy(predicted), torch.from_numpy(labels), num_classes=len(classes)
        ).numpy()
        wrong = np.flatnonzero(labels != predicted)
        wrong = wrong[np.argsort(-probability[wrong], kind="stable")]
        shown = wrong[: self.examples]
        content: dict[str, Any] = {
            "split": np.array(split),
            "classes": np.array(classes),
            "matrix": matrix,  # [K, K]: true class, predicted class
            "names": np.array([images.name(int(index)) for index in shown], dtype=np.str_),
            "images": predict.crops(split, shown).permute(0, 2, 3, 1).numpy(),  # [examples, S, S, 3]
            "true": labels[shown],
            "predicted": predicted[shown],
            "probability": probability[shown],
        }

        def write(file: BinaryIO) -> None:
            np.savez_compressed(file, **content)

        atomic_write(folder / results.CONFUSION, write)
        results.write_rows(
            folder / MISCLASSIFIED_CSV,
            [
                {
                    "image": images.name(int(index)),
                    "true": classes[labels[index]],
                    "predicted": classes[predicted[index]],
                    "probability": float(probability[index]),
                }
                for index in wrong
            ],
            digits=4,
        )


def surest(logits: Tensor) -> Tensor:
    """The first class of logits [B, K] and its probability, both as float64: [B, 2]."""
    probability, predicted = logits.double().softmax(dim=1).max(dim=1)
    return torch.stack([predicted.double(), probability], dim=1)
