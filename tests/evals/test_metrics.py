"""Metrics of torchmetrics against scikit-learn's and closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy.special import softmax
from sklearn.metrics import (
    balanced_accuracy_score,
    f1_score,
    matthews_corrcoef,
    precision_score,
    recall_score,
    roc_auc_score,
)
from stand_ins import Fixed, dataset

from mixer_lightning.evals.metrics import Metrics, join_without_images, metric_of
from mixer_lightning.files import CONF

KAPPA = {"_target_": "torchmetrics.classification.MulticlassCohenKappa"}


def of_conf(name: str) -> Metrics:
    node = yaml.safe_load((CONF / "evals" / f"{name}.yaml").read_text())
    return Metrics(**{key: value for key, value in node.items() if key != "_target_"})


def unequal_classes() -> tuple[np.ndarray, np.ndarray]:
    noise = np.random.default_rng(0)
    labels = noise.choice(4, size=200, p=[0.7, 0.2, 0.08, 0.02])
    logits = noise.normal(size=(200, 4)).astype(np.float32)
    logits[np.arange(200), labels] += 1.5
    return labels, logits


def test_macro_scores_are_scikit_learns():
    """Of unequal classes, one of them never predicted."""
    labels, logits = unequal_classes()
    logits[:, 3] -= 100
    predicted = logits.argmax(axis=1)
    found = dict(of_conf("macro").run(Fixed(dataset(num_classes=4, val=labels), {"val": logits})))
    for name, score in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
        expected = score(labels, predicted, average="macro", zero_division=0)
        assert found[f"val/macro_{name}"] == pytest.approx(expected, abs=1e-6)


def test_area_under_the_curve_and_correlation_are_scikit_learns():
    labels, logits = unequal_classes()
    evaluation, data = of_conf("metrics"), dataset(num_classes=4, val=labels)
    evaluation.check(data)
    found = dict(evaluation.run(Fixed(data, {"val": logits})))
    assert list(found) == evaluation.metric_names(data)
    probabilities = softmax(logits.astype(np.float64), axis=1)
    area = roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    assert found["val/auroc"] == pytest.approx(area, abs=1e-6)
    correlation = matthews_corrcoef(labels, logits.argmax(axis=1))
    assert found["val/matthews"] == pytest.approx(correlation, abs=1e-6)


def test_classes_without_images_do_not_count():
    """A class may be predicted and have none, and every image may be named right."""
    labels = np.array([0, 0, 1, 1])
    logits = 9 * np.eye(4, dtype=np.float32)[[0, 0, 1, 2]]
    data = dataset(num_classes=4, val=labels)
    recall = dict(of_conf("macro").run(Fixed(data, {"val": logits})))["val/macro_recall"]
    assert recall == pytest.approx(balanced_accuracy_score(labels, [0, 0, 1, 2])) == 0.75
    right = {"val": 9 * np.eye(4, dtype=np.float32)[labels]}
    assert dict(of_conf("metrics").run(Fixed(data, right)))["val/auroc"] == 1


@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_the_calibration_error_is_how_far_certainty_is_from_accuracy(scale: float):
    """All images are predicted alike: one bin, in which the error is |accuracy - probability|.

    The smaller logits lie between 0 and 1, as probabilities do, and are none.
    """
    labels = np.array([0] * 7 + [1] * 3)
    logits = np.tile(scale * np.array([[0.9, 0.1]], np.float32), (10, 1))
    data = dataset(num_classes=2, val=labels)
    found = dict(of_conf("metrics").run(Fixed(data, {"val": logits}, batch=3)))
    expected = abs(0.7 - 1 / (1 + np.exp(-0.8 * scale)))
    assert found["val/calibration_error"] == pytest.approx(expected, abs=1e-6)


def test_images_of_several_labels_are_refused():
    labels = np.array([[0, 1], [1, -1]])
    with pytest.raises(ValueError, match="have several labels, and these metrics are for one"):
        of_conf("macro").check(dataset(num_classes=2, train=labels, val=labels))


@pytest.mark.parametrize("evaluation", [of_conf("macro"), of_conf("metrics")], ids=["macro", "metrics"])
def test_a_process_without_images_joins_the_others(evaluation: Metrics):
    """Every metric has all of its states, and what others bring counts alone."""
    labels, logits = unequal_classes()
    probabilities, labels = torch.from_numpy(logits).softmax(dim=1), torch.from_numpy(labels)
    for name, node in evaluation.metrics.items():
        metric, other = (metric_of(name, node, num_classes=4) for _ in range(2))
        join_without_images(metric, num_classes=4)
        assert all(len(state) for state in metric.metric_state.values() if isinstance(state, list))
        other.update(probabilities, labels)
        expected = other.compute()
        metric.update(probabilities, labels)
        assert metric.compute() == expected


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({}, "mine has no _target_"),
        ("torchmetrics.classification.MulticlassF1Score", "mine has no _target_"),
        ({"_target_": "torchmetrics.NoSuch"}, "torchmetrics.NoSuch cannot be built"),
        (KAPPA | {"wights": 1}, "cannot be built: .*wights"),
        ({"_target_": "collections.Counter"}, "is no metric of torchmetrics"),
        ({"_target_": "torchmetrics.classification.MulticlassF1Score", "average": "none"}, "gives 3 numbers"),
        ({"_target_": "torchmetrics.classification.MulticlassConfusionMatrix"}, "gives 9 numbers"),
        ({"_target_": "torchmetrics.classification.BinaryAUROC"}, "cannot judge the probabilities"),
        (
            {"_target_": "torchmetrics.classification.MulticlassAccuracy", "num_classes": 7},
            "cannot judge the probabilities",
        ),
    ],
)
def test_what_is_no_metric_of_one_number_is_refused_before_the_run(node: Any, message: str):
    labels = np.array([0, 1, 2])
    with pytest.raises(ValueError, match=message):
        Metrics(metrics={"mine": node}).check(dataset(num_classes=3, val=labels))
