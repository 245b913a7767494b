"""Precision, recall and F1 as means over classes, which a large class does not drown: for data of unequal classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torchmetrics.functional.classification import (
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from mixer_lightning.evals import Predict, checked_split, eval_splits

if TYPE_CHECKING:
    from mixer_lightning.data.sources import Dataset

SCORES = {
    "macro_f1": multiclass_f1_score,
    "macro_precision": multiclass_precision,
    "macro_recall": multiclass_recall,
}


@dataclass(frozen=True, kw_only=True)
class Macro:
    """`<split>/macro_f1`, `macro_precision`, `macro_recall`: torchmetrics' figures with average="macro".

    splits: which to evaluate; null for all but train.
    at_end: during training, evaluate after the last step only.

    Macro recall is also called balanced accuracy. Classes without an image and without a prediction do not count.
    """

    splits: list[str] | None = None
    at_end: bool = False
    uses_head: ClassVar[bool] = True

    def check(self, data: Dataset) -> None:
        """Refuse splits that the data set lacks, and images of several labels, for which these are not defined."""
        for split in self.splits or eval_splits(data):
            if data.splits[checked_split(data, split)].labels(np.arange(1)).ndim > 1:
                raise ValueError(f"images of {data.name} have several labels: leave macro out")

    def metric_names(self, data: Dataset) -> list[str]:
        """The three figures of each split."""
        return [f"{split}/{name}" for split in self.splits or eval_splits(data) for name in SCORES]

    def run(self, predict: Predict) -> Iterator[tuple[str, float]]:
        """The three figures of each split."""
        for split in self.splits or eval_splits(predict.data):
            pairs = predict.all_gather(
                torch.stack([logits.argmax(dim=1), labels], dim=1) for logits, labels in predict.logits(split)
            )  # [N, 2]
            for name, score in SCORES.items():
                value = score(
                    pairs[:, 0], pairs[:, 1], num_classes=len(predict.data.classes), average="macro"
                )
                yield f"{split}/{name}", float(value)
