"""What is confused is counted as scikit-learn counts it, and drawn from the files alone."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix
from stand_ins import Fixed, dataset

from mixer_lightning import results
from mixer_lightning.evals.confusion import Confusion
from mixer_lightning.reports import confusion


def noise(images: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.standard_normal((images, classes)).astype(np.float32), generator.integers(
        0, classes, images
    )


def stored(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / results.CONFUSION, allow_pickle=False) as content:
        return dict(content)


def test_counts_and_the_surest_mistakes(tmp_path):
    logits, labels = noise(90, 6)
    predict = Fixed(dataset(num_classes=6, train=labels, test=labels), {"test": logits}, folder=tmp_path)
    assert list(Confusion(examples=10).run(predict)) == []
    found = stored(tmp_path)
    predicted = logits.argmax(axis=1)
    assert np.array_equal(found["matrix"], confusion_matrix(labels, predicted, labels=range(6)))
    exponents = np.exp(logits.astype(float))
    probability = exponents.max(axis=1) / exponents.sum(axis=1)
    wrong = [i for i in np.argsort(-probability) if labels[i] != predicted[i]]
    assert np.array_equal(found["true"], labels[wrong[:10]])
    assert np.array_equal(found["predicted"], predicted[wrong[:10]])
    assert found["probability"] == pytest.approx(probability[wrong[:10]])
    assert found["images"].shape == (10, 4, 4, 3)
    assert found["images"][:, 0, 0, 0].tolist() == wrong[:10]  # the stand-in paints an image's number
    with (tmp_path / "misclassified.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [f"test row {i}" for i in wrong]
    assert rows[0]["true"] == f"class {labels[wrong[0]]}"
    assert rows[0]["predicted"] == f"class {predicted[wrong[0]]}"


@pytest.mark.parametrize(("images", "classes"), [(50, 3), (300, 200)])
def test_both_pictures_are_drawn(tmp_path, images, classes):
    logits, labels = noise(images, classes)
    predict = Fixed(dataset(num_classes=classes, train=labels, val=labels), {"val": logits}, folder=tmp_path)
    list(Confusion().run(predict))
    confusion.draw(tmp_path)
    for name in (confusion.CONFUSION_PNG, confusion.MISCLASSIFIED_PNG):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 300
            assert max(picture.size) < 3000
            assert len(set(picture.convert("L").getdata())) > 20


def test_nothing_wrong_is_drawn_too(tmp_path):
    labels = np.array([0, 1, 1])
    logits = np.eye(2, dtype=np.float32)[labels]
    predict = Fixed(dataset(num_classes=2, train=labels, val=labels), {"val": logits}, folder=tmp_path)
    list(Confusion().run(predict))
    confusion.draw(tmp_path)
    assert stored(tmp_path)["matrix"].tolist() == [[1, 0], [0, 2]]
    assert (tmp_path / confusion.MISCLASSIFIED_PNG).exists()


def test_many_classes_and_several_labels_are_passed_over(tmp_path):
    logits, labels = noise(20, 4)
    several = np.stack([labels, np.full(20, -1)], axis=1)
    for shape, most in ((labels, 3), (several, 200)):
        predict = Fixed(dataset(num_classes=4, train=shape, val=shape), {"val": logits}, folder=tmp_path)
        list(Confusion(max_classes=most).run(predict))
    confusion.draw(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    logits, labels = noise(20, 4)
    monkeypatch.chdir(tmp_path)
    list(Confusion().run(Fixed(dataset(num_classes=4, train=labels, val=labels), {"val": logits})))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="no split 'test', there are: val"):
        Confusion(split="test").check(dataset(num_classes=4, train=labels, val=labels))
