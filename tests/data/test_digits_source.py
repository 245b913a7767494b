"""The digits are scikit-learn's, all of them, split once and for ever."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mixer_lightning.data.sources.digits import digits

sklearn_datasets = pytest.importorskip("sklearn.datasets")


@pytest.fixture(scope="module")
def data():
    return digits()


def test_counts(data):
    assert {split: len(images) for split, images in data.splits.items()} == {"train": 1437, "test": 360}
    assert data.classes == list("0123456789")


def test_the_two_splits_together_are_scikit_learns_set(data):
    bunch = sklearn_datasets.load_digits()
    theirs = Counter(
        (image.tobytes(), int(label)) for image, label in zip(bunch.images, bunch.target, strict=True)
    )
    ours = Counter()
    for images in data.splits.values():
        for i, label in enumerate(images.labels(np.arange(len(images))).tolist()):
            pixels = images.read(i)
            assert (pixels.shape, pixels.dtype) == ((8, 8, 3), np.uint8)
            assert (pixels == pixels[..., :1]).all()
            ours[np.rint(pixels[..., 0] / 255 * 16).astype(np.float64).tobytes(), label] += 1
    assert ours == theirs


def test_range_is_the_full_one(data):
    pixels = np.stack([data.splits["test"].read(i) for i in range(360)])
    assert (pixels.min(), pixels.max()) == (0, 255)


def test_every_class_has_its_share_in_the_test_split(data):
    counts = Counter(data.splits["test"].labels(np.arange(360)).tolist())
    assert all(35 <= counts[label] <= 37 for label in range(10))


def test_the_split_is_the_one_of_every_figure_that_was_measured_on_it(data):
    """Its rows hang on scikit-learn's train_test_split, which is not ours to keep."""
    first = data.splits["test"].labels(np.arange(40)).tolist()
    assert "".join(map(str, first)) == "1486599132220748153945912489871664052721"
    for called in ("name", "key"):
        names = {getattr(images, called)(i) for images in data.splits.values() for i in range(len(images))}
        assert len(names) == 1797


def test_a_name_and_a_key_tell_scikit_learns_row(data):
    bunch = sklearn_datasets.load_digits()
    for images in data.splits.values():
        for i in range(0, len(images), 50):
            row = int(images.key(i))
            assert images.name(i) == f"digits row {row}"
            assert images.labels(np.array([i])).tolist() == [bunch.target[row]]
            np.testing.assert_array_equal(images.read(i)[..., 0], np.rint(bunch.images[row] * 255 / 16))
