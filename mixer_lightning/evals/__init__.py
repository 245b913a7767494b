"""Evaluations: one file and one YAML each. `run(predict)` yields (metric name, value) pairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Predict(Protocol):
    """What a run offers its evaluations. Under many processes each sees its own share of every split."""

    num_classes: int
    device: torch.device

    def splits(self) -> list[str]:
        """Names of the splits besides train."""
        ...

    def logits(self, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches (logits [B, K] float32, labels [B] int64) of a split, on the device, in a fixed order."""
        ...


class Eval(Protocol):
    """An evaluation."""

    def check(self, splits: list[str]) -> None:
        """Look at the recipe before a long run starts: `splits` are those besides train.

        Raises:
            ValueError: the evaluation could not run on this data set.
        """
        ...

    def run(self, predict: Predict) -> Iterator[tuple[str, float]]:
        """Metric names `split/metric` and values; accuracies are fractions. Equal on every process."""
        ...
