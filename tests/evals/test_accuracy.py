"""Ties, several crops, and each class by itself; counts of whole splits are in tests/test_evals.py."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from sklearn.metrics import recall_score
from stand_ins import Fixed, dataset
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy

from mixer_lightning.evals.accuracy import Accuracy, ranks


def test_of_equal_logits_the_lower_class_comes_first():
    logits = torch.tensor([[1.0, 1.0, 1.0], [0.0, 2.0, 2.0], [3.0, 1.0, 3.0]])
    labels = torch.tensor([[0, 1, 2], [0, 1, 2], [0, 1, 2]])
    found = torch.stack([ranks(logits, column) for column in labels.T], dim=1)
    assert found.tolist() == [[0, 1, 2], [2, 0, 1], [0, 2, 1]]
    assert (ranks(logits, logits.argmax(dim=1)) == 0).all()  # as other evaluations choose


def test_a_network_of_nan_is_never_right():
    labels = torch.tensor([0, 1, 2])
    assert (ranks(torch.full((3, 3), torch.nan), labels) == 3).all()
    logits = torch.tensor([[torch.nan, 1.0, 0.0]] * 3)
    assert ranks(logits, labels).tolist() == [3, 1, 2]


def test_an_image_of_several_labels_has_the_best_of_their_ranks():
    logits = torch.tensor([[0.1, 0.4, 0.3, 0.2]]).expand(3, 4)
    labels = torch.tensor([[0, 2, -1], [3, -1, -1], [-1, -1, -1]])
    assert ranks(logits, labels).tolist() == [1, 2, 4]


def test_every_view_has_its_figures():
    labels = np.array([0, 1, 2, 3])
    right, half = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)[[0, 1, 0, 0]]
    predict = Fixed(dataset(num_classes=4, train=labels, val=labels), {"val": right}, square={"val": half})
    assert dict(Accuracy().run(predict)) == {"val/top1": 1}
    assert dict(Accuracy(crops=["square"]).run(predict)) == {"val/top1_square": 0.5}
    both = dict(Accuracy(crops=["short_side", "square"]).run(predict))
    assert both == {"val/top1": 1, "val/top1_square": 0.5}


@pytest.mark.parametrize("several", [False, True])
def test_each_class_has_its_line(tmp_path, several):
    generator = np.random.default_rng(0)
    logits = generator.standard_normal((90, 7)).astype(np.float32)
    labels = generator.integers(0, 6, 90)  # class 6 has no image
    shape = np.stack([labels, np.where(labels == 3, 5, -1)], axis=1) if several else labels
    predict = Fixed(dataset(num_classes=7, train=shape, val=shape), {"val": logits}, folder=tmp_path)
    dict(Accuracy().run(predict))
    with (tmp_path / "per_class_val.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == [f"class {i}" for i in range(7)]
    counts = np.bincount(labels, minlength=7) + several * (np.arange(7) == 5) * (labels == 3).sum()
    assert [int(row["images"]) for row in rows] == counts.tolist()
    assert rows[6]["top1"] == rows[6]["top5"] == ""
    first = logits.argmax(1)
    recall = recall_score(labels, first, labels=range(3), average=None)
    assert [float(row["top1"]) for row in rows[:3]] == pytest.approx(recall, abs=1e-5)
    if several:  # those of class 3 are right as 3 or 5, and count for both
        right = np.isin(first, (3, 5))[labels == 3].mean()
        assert float(rows[3]["top1"]) == pytest.approx(right, abs=1e-5)


@pytest.mark.parametrize("classes", [3, 40])
def test_figures_are_those_of_torchmetrics(tmp_path, classes):
    generator = np.random.default_rng(classes)
    logits = generator.standard_normal((200, classes)).astype(np.float32)
    labels = generator.integers(classes, size=200)
    predict = Fixed(dataset(num_classes=classes, train=labels, val=labels), {"val": logits})
    figures = dict(Accuracy().run(predict))
    assert len(figures) == (2 if classes > 5 else 1)
    for name, value in figures.items():
        metric = MulticlassAccuracy(classes, top_k=int(name.removeprefix("val/top")), average="micro")
        assert value == pytest.approx(metric(torch.from_numpy(logits), torch.from_numpy(labels)).item())


@pytest.mark.parametrize("batch", [1, 7, 90])
def test_the_loss_is_exact_over_the_split(batch):
    """The mean over all images, whatever the last batch holds; the reference is torch's own, in one piece."""
    generator = np.random.default_rng(3)
    logits, labels = generator.standard_normal((90, 6)).astype(np.float32), generator.integers(0, 6, 90)
    predict = Fixed(dataset(num_classes=6, train=labels, val=labels), {"val": logits}, batch=batch)
    predict.loss = lambda some, answers: cross_entropy(some, answers, label_smoothing=0.1)
    expected = cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels), label_smoothing=0.1)
    assert dict(Accuracy().run(predict))["val/loss"] == pytest.approx(float(expected), rel=1e-6)


def test_outside_of_a_training_there_is_no_loss():
    labels = np.arange(6)
    predict = Fixed(dataset(num_classes=6, train=labels, val=labels), {"val": np.eye(6, dtype=np.float32)})
    assert set(dict(Accuracy().run(predict))) == {"val/top1", "val/top5"}
