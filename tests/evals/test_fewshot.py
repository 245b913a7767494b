"""Ridge regression against NumPy's least squares, and the protocol against a second implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stand_ins import Fixed, dataset

from mixer_lightning.evals.fewshot import Fewshot, fit, ridge, sample_shots


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(0)


def least_squares(x: np.ndarray, y: np.ndarray, l2: float) -> np.ndarray:
    """|x w - y|^2 + l2 |w|^2 as plain least squares: a row sqrt(l2) w_i = 0 more for every feature."""
    rows = np.concatenate([x, np.sqrt(l2) * np.eye(x.shape[1])])
    return np.linalg.lstsq(rows, np.concatenate([y, np.zeros((x.shape[1], y.shape[1]))]), rcond=None)[0]


@pytest.mark.parametrize(("points", "features"), [(60, 9), (10, 10), (9, 10), (7, 50), (1, 5)])
@pytest.mark.parametrize("l2", [1e-3, 2.0**10])
def test_ridge_is_least_squares_in_both_regimes(points, features, l2, generator):
    x, y = generator.standard_normal((points, features)), generator.standard_normal((points, 4))
    found = ridge(torch.from_numpy(x), torch.from_numpy(y), l2=l2)
    np.testing.assert_allclose(found.numpy(), least_squares(x, y, l2), rtol=1e-7, atol=1e-10)


def second(x: np.ndarray, labels: np.ndarray, test: np.ndarray, *, num_classes: int) -> np.ndarray:
    """Scores of the test features, straight from the protocol's words."""
    mean, deviation = x.mean(axis=0), x.std(axis=0) + 1e-5
    x, test = (x - mean) / deviation, (test - mean) / deviation
    x, test = (np.concatenate([each, np.full((len(each), 1), 100.0)], axis=1) for each in (x, test))
    targets = 2 * np.eye(num_classes)[labels] - 1
    return test @ least_squares(x, targets, 2.0**10)


@pytest.mark.parametrize("points", [8, 200])
def test_scores_are_those_of_the_protocol(points, generator):
    """Features of real size: some hardly vary, one is constant, one is large."""
    x = generator.standard_normal((points, 30)) * generator.uniform(0.01, 50, 30) + 3
    x[:, 4] = 1.5
    test, labels = generator.standard_normal((20, 30)) * 10, generator.integers(0, 3, points)
    line = fit(torch.from_numpy(x).float(), torch.from_numpy(labels), num_classes=3, l2=2.0**10)
    expected = second(x.astype(np.float32).astype(float), labels, test, num_classes=3)
    np.testing.assert_allclose(line(torch.from_numpy(test)).numpy(), expected, rtol=1e-6, atol=1e-8)


def test_draws_are_the_first_of_a_permutation_of_each_class(generator):
    labels = generator.integers(0, 5, 200)
    labels[labels == 4] = 0
    labels[:3] = 4  # fewer than are asked for
    found = sample_shots(labels, [1, 5, 10], num_classes=6, seed=3)
    numbers = np.random.default_rng(3)
    orders = [numbers.permutation([i for i, label in enumerate(labels) if label == k]) for k in range(6)]
    for shots, indices in found.items():
        assert indices.tolist() == [i for order in orders for i in order[:shots]]
    assert [np.bincount(labels[i], minlength=6).tolist() for i in found.values()] == [
        [1, 1, 1, 1, 1, 0],
        [5, 5, 5, 5, 3, 0],
        [10, 10, 10, 10, 3, 0],
    ]
    assert not np.array_equal(sample_shots(labels, [1], num_classes=6, seed=4)[1], found[1])


def clusters(count: int, *, num_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.random.default_rng(seed)
    labels = numbers.integers(0, num_classes, count)
    centres = np.random.default_rng(99).standard_normal((num_classes, 12))
    return (centres[labels] + numbers.standard_normal((count, 12))).astype(np.float32), labels


def test_the_figure_is_the_mean_over_seeds_and_only_drawn_images_are_read():
    (x, labels), (test, truth) = clusters(400, num_classes=4, seed=1), clusters(150, num_classes=4, seed=2)
    expected = {}
    for shots in (1, 3):  # 4 and 12 points of 13 features; then 40
        figures = []
        for seed in (0, 5):
            some = sample_shots(labels, [shots], num_classes=4, seed=seed)[shots]
            scores = second(x[some].astype(float), labels[some], test, num_classes=4)
            figures.append(np.mean(scores.argmax(axis=1) == truth))
        expected[f"fewshot/made_{shots}shot"] = np.mean(figures)
    used = [sample_shots(labels, [3], num_classes=4, seed=seed)[3] for seed in (0, 5)]
    unread = np.setdiff1d(np.arange(400), np.concatenate(used))
    x[unread] = np.nan  # would spoil everything
    data = dataset(num_classes=4, train=labels, val=truth)
    for batch in (1, 64):
        predict = Fixed(data, {"train": x, "val": test}, batch=batch)
        found = dict(Fewshot(shots=[1, 3], seeds=[0, 5]).run(predict))
        assert found == pytest.approx(expected, abs=1e-12)
        crop = (
            "square",
            0.875,
            "tf_bilinear",
        )  # big_vision's resize(256), by tf.image.resize, and central_crop(224)
        assert predict.asked == [("train", *crop), ("val", *crop)]
    assert 0.3 < min(expected.values()) < max(expected.values()) < 1


@pytest.mark.parametrize("batch", [1, 64])
def test_the_next_image_of_its_class_takes_the_place_of_a_bad_one(batch):
    """As if the bad ones had been struck out of every permutation; also where the next one is bad again."""
    (x, labels), (test, truth) = clusters(300, num_classes=4, seed=1), clusters(90, num_classes=4, seed=2)
    orders = {
        seed: [
            numbers.permutation(np.flatnonzero(labels == k)).tolist()
            for numbers in [np.random.default_rng(seed)]
            for k in range(4)
        ]
        for seed in (0, 5)
    }
    bad = {orders[0][1][0], orders[0][1][3], orders[0][1][4], orders[5][2][1], *np.flatnonzero(labels == 3)}
    expected = {}
    for shots in (1, 3):
        figures = []
        for order in orders.values():
            good = [[i for i in each if i not in bad] for each in order]
            some = np.array([i for each in good for i in each[:shots]])  # none of class 3
            scores = second(x[some].astype(float), labels[some], test, num_classes=4)
            figures.append(np.mean(scores.argmax(axis=1) == truth))
        expected[f"fewshot/made_{shots}shot"] = np.mean(figures)
    x[sorted(bad)] = np.nan
    predict = Fixed(
        dataset(num_classes=4, train=labels, val=truth), {"train": x, "val": test}, batch=batch, bad=bad
    )
    assert dict(Fewshot(shots=[1, 3], seeds=[0, 5]).run(predict)) == pytest.approx(expected, abs=1e-12)
    predict = Fixed(
        dataset(num_classes=4, train=labels, val=truth), {"train": x, "val": test}, bad=range(300)
    )
    with pytest.raises(ValueError, match="none of the images drawn from made's train can be read"):
        dict(Fewshot(shots=[1]).run(predict))


def test_the_test_split_is_judged_where_there_is_one():
    (x, labels), (test, truth) = clusters(60, num_classes=3, seed=1), clusters(9, num_classes=3, seed=2)
    data = dataset(num_classes=3, train=labels, val=labels, test=truth)
    predict = Fixed(data, {"train": x, "test": test, "val": x})
    list(Fewshot(shots=[2]).run(predict))
    list(Fewshot(shots=[2], split="val").run(predict))
    assert [split for split, *_ in predict.asked] == ["train", "test", "train", "val"]


def test_what_cannot_be_is_refused():
    several = np.array([[0, 1], [1, -1]])
    with pytest.raises(ValueError, match="several labels"):
        Fewshot().check(dataset(num_classes=2, train=several, val=several))
    with pytest.raises(ValueError, match=r"no split 'dev', there are: val"):
        Fewshot(split="dev").check(dataset(num_classes=2, train=several[:, 0], val=several[:, 0]))
    Fewshot().check(dataset(num_classes=2, train=several[:, 0], val=several[:, 0]))
    for wrong in ({"shots": [0]}, {"seeds": []}, {"l2": 0.0}, {"eval_crop": 1.5}):
        with pytest.raises(ValueError, match=f"fewshot: .*{next(iter(wrong))}"):
            Fewshot(**wrong)
