"""What evaluations are shown in place of a network and its data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mixer_lightning.data.sources import Dataset
from mixer_lightning.data.sources.arrays import Arrays


class Named(Arrays):
    """Pixels with keys of one's own."""

    def __init__(self, keys: list[str], labels: np.ndarray) -> None:
        super().__init__("named", np.zeros((len(keys), 1, 1, 3), np.uint8), labels)
        self._keys = keys

    def key(self, index: int) -> str:
        return self._keys[index]


def dataset(*, num_classes: int, **labels: np.ndarray) -> Dataset:
    """Splits of black pixels with these labels."""
    splits = {
        split: Arrays(split, np.zeros((len(each), 2, 2, 3), np.uint8), each) for split, each in labels.items()
    }
    return Dataset("made", [f"class {i}" for i in range(num_classes)], splits)


class Fixed:
    """A `Predict` of given values, in batches of any size; what was asked for is noted."""

    device = torch.device("cpu")
    loss = None

    def __init__(
        self,
        data: Dataset,
        values: dict[str, np.ndarray],
        *,
        batch: int = 7,
        folder: Path | None = None,
        square: dict[str, np.ndarray] | None = None,
        bad: Iterable[int] = (),
    ) -> None:
        self.data, self.folder = data, folder
        self._values, self._square, self._batch = values, square or values, batch
        self._bad = np.array([*bad], np.int64)  # training images that cannot be read
        self.asked: list[tuple[str, object, object, object]] = []

    def local_indices(self, split: str) -> np.ndarray:
        return np.arange(len(self.data.splits[split]))

    def logits(self, split: str, *, eval_resize: str | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        values = self._square if eval_resize == "square" else self._values
        yield from self._batches(split, values[split], self.local_indices(split))

    def features(
        self,
        split: str,
        *,
        eval_resize: str | None = None,
        eval_crop: float | None = None,
        eval_interpolation: str | None = None,
        indices: np.ndarray | None = None,
        mark_bad: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        self.asked.append((split, eval_resize, eval_crop, eval_interpolation))
        indices = self.local_indices(split) if indices is None else indices
        for values, labels in self._batches(split, self._values[split], indices):
            some, indices = indices[: len(labels)], indices[len(labels) :]
            if mark_bad:
                labels[np.isin(some, self._bad)] = -1
            yield values, labels

    def _batches(
        self, split: str, values: np.ndarray, indices: np.ndarray
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for first in range(0, len(indices), self._batch):
            some = indices[first : first + self._batch]
            yield torch.from_numpy(values[some]), torch.from_numpy(self.data.splits[split].labels(some))

    def crops(self, split: str, indices: np.ndarray) -> Tensor:
        grey = torch.as_tensor(indices).to(torch.uint8)
        return grey[:, None, None, None].expand(-1, 3, 4, 4)

    def all_gather(self, batches: Iterable[Tensor]) -> Tensor:
        return torch.cat(list(batches))
