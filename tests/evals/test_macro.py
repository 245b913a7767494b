"""Macro scores against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score
from stand_ins import Fixed, dataset

from mixer_lightning.evals.macro import Macro


def test_scores_are_scikit_learns():
    """Of unequal classes, one of them never predicted."""
    noise = np.random.default_rng(0)
    labels = noise.choice(4, size=200, p=[0.7, 0.2, 0.08, 0.02])
    logits = noise.normal(size=(200, 4)).astype(np.float32)
    logits[np.arange(200), labels] += 1.5
    logits[:, 3] -= 100
    predicted = logits.argmax(axis=1)
    found = dict(Macro().run(Fixed(dataset(num_classes=4, train=labels, val=labels), {"val": logits})))
    for name, score in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
        expected = score(labels, predicted, average="macro", zero_division=0)
        assert found[f"val/macro_{name}"] == pytest.approx(expected, abs=1e-6)


def test_images_of_several_labels_are_refused():
    labels = np.array([[0, 1], [1, -1]])
    with pytest.raises(ValueError, match="have several labels: leave macro out"):
        Macro().check(dataset(num_classes=2, train=labels, val=labels))
