"""Accuracy against a count by hand, however the images are cut into batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixer_lightning.data.sources import Dataset
from mixer_lightning.evals.accuracy import Accuracy


class Fixed:
    """A `Predict` of given logits and labels, in batches of any size."""

    device = torch.device("cpu")
    folder = None
    loss = None

    def __init__(self, splits: dict[str, tuple[np.ndarray, np.ndarray]], *, batch: int) -> None:
        self._splits, self._batch = splits, batch
        num_classes = next(iter(splits.values()))[0].shape[1]
        self.data = data(*splits, num_classes=num_classes)

    def logits(self, split: str, *, eval_resize: None = None) -> Iterator[tuple[Tensor, Tensor]]:
        logits, labels = (torch.from_numpy(array) for array in self._splits[split])
        yield from zip(logits.split(self._batch), labels.split(self._batch), strict=True)

    def all_gather(self, batches: Iterable[Tensor]) -> Tensor:
        return torch.cat(list(batches))


def data(*splits: str, num_classes: int = 2) -> Dataset:
    """A data set of which only names matter."""
    return Dataset("fixed", [str(i) for i in range(num_classes)], {split: [] for split in ("train", *splits)})


def noise(seed: int, *, images: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    logits = generator.standard_normal((images, classes)).astype(np.float32)
    return logits, generator.integers(0, classes, images)


def share_among_first(logits: np.ndarray, labels: np.ndarray, k: int) -> float:
    first = np.argsort(-logits, axis=1)[:, :k]
    return float(np.mean([label in row for label, row in zip(labels, first, strict=True)]))


@given(
    seed=st.integers(0, 10_000),
    images=st.integers(1, 60),
    classes=st.integers(2, 12),
    batch=st.integers(1, 70),
)
@settings(max_examples=40, deadline=None)
def test_top1_and_top5_are_counts(seed, images, classes, batch):
    logits, labels = noise(seed, images=images, classes=classes)
    found = dict(Accuracy().run(Fixed({"test": (logits, labels)}, batch=batch)))
    expected = {"test/top1": share_among_first(logits, labels, 1)}
    if classes > 5:
        expected["test/top5"] = share_among_first(logits, labels, 5)
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_smaller_last_batch_weighs_by_its_images():
    logits = np.eye(3, dtype=np.float32)[[0, 0, 0, 1]]  # predictions 0 0 0 1
    labels = np.array([0, 0, 0, 2])
    for batch in (1, 2, 3, 4):
        assert dict(Accuracy().run(Fixed({"val": (logits, labels)}, batch=batch))) == {"val/top1": 0.75}


def test_every_split_has_its_own_count():
    splits = {"val": noise(1, images=20, classes=7), "test": noise(2, images=33, classes=7)}
    found = dict(Accuracy().run(Fixed(splits, batch=8)))
    assert found == pytest.approx(
        {f"{split}/top{k}": share_among_first(*splits[split], k) for split in splits for k in (1, 5)}
    )
    assert set(dict(Accuracy(splits=["val"]).run(Fixed(splits, batch=8)))) == {"val/top1", "val/top5"}


@given(
    seed=st.integers(0, 10_000),
    images=st.integers(1, 40),
    classes=st.integers(2, 12),
    batch=st.integers(1, 50),
)
@settings(max_examples=30, deadline=None)
def test_of_several_labels_any_counts(seed, images, classes, batch):
    """An image is right if one of its labels is among the first k; unused places are -1 and match nothing."""
    logits, _ = noise(seed, images=images, classes=classes)
    generator = np.random.default_rng(seed)
    labels = np.full((images, 4), -1)
    for row in labels:
        several = generator.permutation(classes)[: generator.integers(1, 5)]
        row[: len(several)] = several
    found = dict(Accuracy().run(Fixed({"test": (logits, labels)}, batch=batch)))
    first = np.argsort(-logits, axis=1)
    for k in (1, 5) if classes > 5 else (1,):
        right = [bool({*row[:k]} & {*theirs[theirs >= 0]}) for row, theirs in zip(first, labels, strict=True)]
        assert found.pop(f"test/top{k}") == pytest.approx(np.mean(right), abs=1e-6)
    assert not found


def test_one_label_in_a_column_is_one_label():
    logits, labels = noise(3, images=50, classes=8)
    one = dict(Accuracy().run(Fixed({"test": (logits, labels)}, batch=16)))
    wide = np.stack([labels, np.full(50, -1)], axis=1)
    assert dict(Accuracy().run(Fixed({"test": (logits, wide)}, batch=16))) == one


def test_an_unknown_split_is_refused_by_name():
    for wrong in ("val", "train"):
        with pytest.raises(ValueError, match=f"no split '{wrong}', there are: test"):
            Accuracy(splits=[wrong]).check(data("test"))
    Accuracy(splits=["test"]).check(data("val", "test"))
    Accuracy().check(data("test"))
