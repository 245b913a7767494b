"""Classification metrics of torchmetrics, any that gives one number."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAUROC, MulticlassRecall
from torchmetrics.utilities.data import dim_zero_cat

from mixer_lightning.evals import Predict, checked_split, eval_splits
from mixer_lightning.screen import last_line
from mixer_lightning.targets import build

if TYPE_CHECKING:
    from mixer_lightning.data.sources import Dataset


class AreaUnderCurve(MulticlassAUROC):
    """Of each class against the others, the mean over the classes that have images."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average="none")

    def compute(self) -> Tensor:  # type: ignore[override]
        """One number."""
        has_images = torch.bincount(dim_zero_cat(self.target), minlength=self.num_classes) > 0
        areas: Tensor = super().compute()
        return areas[has_images].mean()


class BalancedAccuracy(MulticlassRecall):
    """The accuracy of each class, the mean over the classes that have images."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average="none")

    def compute(self) -> Tensor:
        """One number."""
        accuracies: Tensor = super().compute()
        has_images = dim_zero_cat(self.tp) + dim_zero_cat(self.fn) > 0
        return accuracies[has_images].mean()


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """`<split>/<name>` of each metric, from the classes' probabilities and the labels of all images.

    metrics: nodes by name, each the `_target_` of a torchmetrics metric and its parameters; num_classes is the data's.
    splits: which to evaluate; null for all but train.
    at_end: during training, evaluate after the last step only.

    Each image counts once, however many processes there are: torchmetrics adds up what they have seen.
    """

    metrics: dict[str, dict[str, Any]]
    splits: list[str] | None = None
    at_end: bool = False
    uses_head: ClassVar[bool] = True

    def check(self, data: Dataset) -> None:
        """Refuse splits that the data set lacks, images of several labels, and what is no metric of one number."""
        for split in self.splits or eval_splits(data):
            if data.splits[checked_split(data, split)].labels(np.arange(1)).ndim > 1:
                raise ValueError(
                    f"images of {data.name} have several labels, and these metrics are for one: leave this evaluation "
                    "out"
                )
        num_classes = len(data.classes)
        labels = torch.arange(min(num_classes, 8)).repeat(
            2
        )  # to see its form; of all classes it would be gigabytes
        for name, node in self.metrics.items():
            metric = metric_of(name, node, num_classes=num_classes)
            try:
                metric.update(F.one_hot(labels, num_classes).float(), labels)
                value = metric.compute()
            except Exception as error:
                raise ValueError(
                    f"{name}: {type(metric).__name__} cannot judge the probabilities [N, {num_classes}] of "
                    f"classes: {last_line(error)}. Take one of torchmetrics.classification.Multiclass..."
                ) from error
            if not isinstance(value, Tensor) or value.numel() != 1:
                raise ValueError(
                    f"{name}: {type(metric).__name__} gives {_form(value)}, and a figure is one number: average=macro "
                    "makes one of several classes, evals=confusion draws the matrix"
                )

    def metric_names(self, data: Dataset) -> list[str]:
        """Each metric of each split."""
        return [f"{split}/{name}" for split in self.splits or eval_splits(data) for name in self.metrics]

    def run(self, predict: Predict) -> Iterator[tuple[str, float]]:
        """Each metric of each split."""
        data = predict.data
        for split in self.splits or eval_splits(data):
            metrics = {
                name: metric_of(name, node, num_classes=len(data.classes)).to(predict.device)
                for name, node in self.metrics.items()
            }
            seen = False
            for logits, labels in predict.logits(split):
                seen = True
                probabilities = logits.softmax(
                    dim=1
                )  # of logits torchmetrics would have to guess what they are
                for metric in metrics.values():
                    metric.update(probabilities, labels)
            for name, metric in metrics.items():
                if not seen:
                    join_without_images(metric, num_classes=len(data.classes))
                yield f"{split}/{name}", float(metric.compute())


def join_without_images(metric: Metric, *, num_classes: int) -> None:
    """Give a metric that keeps all it is shown (no sums) an empty part, for which other processes would wait."""
    if any(isinstance(state, list) for state in metric.metric_state.values()):
        metric.update(
            torch.empty(0, num_classes, device=metric.device),
            torch.empty(0, dtype=torch.int64, device=metric.device),
        )


def metric_of(name: str, node: Mapping[str, Any], *, num_classes: int) -> Metric:
    """The metric that a node describes, for so many classes.

    Raises:
        ValueError: it describes none.
    """
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        raise ValueError(
            f"{name} has no _target_: name a metric, as torchmetrics.classification.MulticlassF1Score"
        )
    try:
        make = build({**node, "_partial_": True})
        wants_number = "num_classes" in inspect.signature(make.func).parameters and "num_classes" not in node
        metric = make(num_classes=num_classes) if wants_number else make()
    except Exception as error:
        raise ValueError(f"{name}: {node['_target_']} cannot be built: {last_line(error)}") from error
    if not isinstance(metric, Metric):
        raise ValueError(f"{name}: {node['_target_']} is no metric of torchmetrics")
    return metric


def _form(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.numel()} numbers" if value.numel() else "no number"
    return f"a {type(value).__name__}"
