"""Evaluations: one file and one YAML each. `run(predict)` yields (metric name, value) pairs.

Legend: N images of a split, n of them this process's, B images of a batch, K classes, F features, S side of the
model's input in pixels, L labels an image has at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Literal, Protocol, cast

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor

    from mixer_lightning.data.crops import Filter
    from mixer_lightning.data.sources import Dataset, Indices

Resize = Literal["short_side", "square"]  # of the evaluation's crop, as in data/transforms.py


class Predict(Protocol):
    """What a run offers its evaluations. Of several processes each sees its own part of every split.

    What yields batches does so in a fixed order, on the device. `eval_resize`, `eval_crop` and `eval_interpolation`
    ask for other crops of the images than the recipe's; `indices` for some images of the split alone, and only these
    are read. One that cannot be read ends the run, unless `mark_bad` asks for the label -1, and whatever features, in
    its place.
    """

    @property
    def data(self) -> Dataset:
        """The data set."""
        ...

    @property
    def device(self) -> torch.device:
        """Where batches are."""
        ...

    @property
    def folder(self) -> Path | None:
        """The run directory, for files; None where there is none, and on all processes but the first."""
        ...

    @property
    def loss(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """The recipe's loss of a batch (logits [B, K], labels), the mean over it; None outside of a training."""
        ...

    def local_indices(self, split: str) -> Indices:
        """Indices [n] of this process's images, in the order in which `logits` shows them."""
        ...

    def logits(self, split: str, *, eval_resize: Resize | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches (logits [B, K] float32, labels [B] or [B, L] int64)."""
        ...

    def features(
        self,
        split: str,
        *,
        eval_resize: Resize | None = None,
        eval_crop: float | None = None,
        eval_interpolation: Filter | None = None,
        indices: Indices | None = None,
        mark_bad: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches (features [B, F] float32, labels); what the head's linear layer sees."""
        ...

    def crops(self, split: str, indices: Indices) -> Tensor:
        """What the network sees of these images, all on this process: uint8 [B, 3, S, S], on the CPU."""
        ...

    def all_gather(self, batches: Iterable[Tensor]) -> Tensor:
        """From batches [B, ...] of this process's images, those of all processes in the order of the images: [N, ...].

        All processes call it, and all get the same, on the CPU.
        """
        ...


class Eval(Protocol):
    """An evaluation: these two methods, and of others what is not as `is_at_end`, `uses_head`, `names_of` say."""

    def check(self, data: Dataset) -> None:
        """Look at the data before a long run starts.

        Raises:
            ValueError: the evaluation could not run on this data set.
        """
        ...

    def run(self, predict: Predict) -> Iterator[tuple[str, float]]:
        """Metric names `split/metric` and values; accuracies are fractions. Equal on every process."""
        ...


def checked_eval(name: str, evaluation: object) -> Eval:
    """What a `_target_` of evals built, if it is an evaluation.

    Raises:
        ValueError: it lacks a method of `Eval`.
    """
    wanted = {"check": "check(data)", "run": "run(predict)"}
    missing = [call for method, call in wanted.items() if not callable(getattr(evaluation, method, None))]
    if missing or isinstance(evaluation, type):
        kind = evaluation.__name__ if isinstance(evaluation, type) else type(evaluation).__name__
        raise ValueError(
            f"evals.{name}: {kind} has no {' and no '.join(missing) or 'parameters yet: it is a class'}. An evaluation "
            "is a class with check(data) and run(predict), which yields (name, value), as 'val/top1', 0.5"
        )
    return cast("Eval", evaluation)


def is_at_end(evaluation: Eval) -> bool:
    """Whether it is no use, or too slow, in the middle of training: its `at_end`, false unless it says so."""
    return bool(getattr(evaluation, "at_end", False))


def uses_head(evaluation: Eval) -> bool:
    """Whether it judges the classifier, not only its features: its `uses_head`, true unless it says otherwise."""
    return bool(getattr(evaluation, "uses_head", True))


def names_of(evaluation: Eval, data: Dataset) -> list[str] | None:
    """What the figures are called that it yields in a training: its `metric_names(data)`; None where it has none."""
    names = getattr(evaluation, "metric_names", None)
    return None if names is None else list(names(data))


def metrics_of(name: str, evaluation: Eval, predict: Predict) -> dict[str, float]:
    """Run an evaluation: its figures by name.

    Raises:
        ValueError: what it yields is no pair of a name and a number, or a name of training's or the log's own.
    """
    metrics: dict[str, float] = {}
    for pair in evaluation.run(predict) or ():
        try:
            metric, value = pair
            metrics[metric] = float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"evals.{name} yields {pair!r}, which is no pair of a name and a number, as 'val/top1', 0.5"
            ) from error
        if not isinstance(metric, str) or metric in ("step", "epoch") or metric.startswith("train/"):
            raise ValueError(
                f"evals.{name} calls a figure {metric!r}: name it <split>/<metric>, as 'val/top1'"
            )
    return metrics


def eval_splits(data: Dataset) -> list[str]:
    """Names of the splits besides train."""
    return [split for split in data.splits if split != "train"]


def checked_split(data: Dataset, split: str) -> str:
    """The name of a split; ValueError if the data set lacks it, or trains on it."""
    there = eval_splits(data)
    if split not in there:
        raise ValueError(f"no split '{split}', there are: {', '.join(there)}")
    return split


def eval_split(data: Dataset, split: str | None) -> str:
    """The split that is named, else test, or val where there is no test."""
    if split is None:
        split = "test" if "test" in data.splits else "val"
    return checked_split(data, split)
