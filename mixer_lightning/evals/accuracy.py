"""Top-1 and top-5 accuracy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torchmetrics.classification import MulticlassAccuracy

from mixer_lightning.evals import Predict


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Fraction of images whose label is the first, or among the first five, of the sorted logits.

    splits: which to evaluate; null for all but train.
    Counts are summed over processes before they are divided, so the figure does not depend on their number.
    """

    splits: list[str] | None = None

    def check(self, splits: list[str]) -> None:
        """Refuse splits that the data set lacks."""
        for split in self.splits or []:
            if split not in splits:
                raise ValueError(f"evals.accuracy.splits: no split '{split}', there are: {', '.join(splits)}")

    def run(self, predict: Predict) -> Iterator[tuple[str, float]]:
        """`<split>/top1`, and `<split>/top5` where there are more than five classes."""
        for split in self.splits or predict.splits():
            metrics = {
                k: MulticlassAccuracy(predict.num_classes, top_k=k, average="micro").to(predict.device)
                for k in (1, 5)
                if k < predict.num_classes
            }
            for logits, labels in predict.logits(split):
                for metric in metrics.values():
                    metric.update(logits, labels)
            for k, metric in metrics.items():
                yield f"{split}/top{k}", float(metric.compute())
