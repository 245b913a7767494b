"""Photographs of retinas, processed as Ben Graham did."""

from __future__ import annotations

import numpy as np
from vtab_miniatures import make_diabetic_retinopathy

from mixer_lightning.data.sources.vtab import fundus
from mixer_lightning.data.sources.vtab.tasks import vtab


def retina(radius: int, size: tuple[int, int], inside: np.ndarray) -> np.ndarray:
    """`inside` where the eye is, black outside."""
    y, x = np.mgrid[: size[0], : size[1]]
    disc = (y - size[0] // 2) ** 2 + (x - size[1] / 2 + 0.5) ** 2 < radius**2
    return (inside * disc[:, :, None]).astype(np.uint8)


def test_an_even_eye_becomes_grey():
    done = fundus.process(retina(200, (420, 440), np.full((420, 440, 3), 90)))
    assert done.shape == (540, 540, 3)
    assert done.dtype == np.uint8
    y, x = np.mgrid[:540, :540] - 270
    assert (done[y**2 + x**2 > 270**2] == 128).all()  # cut off
    assert (done[y**2 + x**2 < 265**2] == 128).all()  # the Gaussian reaches 30 pixels; the eye ends at 300


def test_four_times_the_difference_to_the_gaussian_mean():
    """At a radius of 300 nothing is scaled, and a pixel can be worked out by hand."""
    noise = np.random.default_rng(0).integers(60, 130, (700, 640, 3))
    photograph = retina(300, (700, 640), noise)
    done = fundus.process(photograph)
    weights = np.exp(-(np.arange(-30, 31) ** 2) / (2 * 10.0**2))
    weights = np.outer(weights, weights) / weights.sum() ** 2
    for y, x in ((0, 0), (100, -50), (-200, 120)):
        row, column = 350 + y, 320 + x
        patch = photograph[row - 30 : row + 31, column - 30 : column + 31].astype(float)
        mean = np.rint((patch * weights[:, :, None]).sum((0, 1)))
        expected = (4 * (photograph[row, column] - mean) + 128).clip(0, 255)
        assert np.abs(done[270 + y, 270 + x] - expected).max() <= 4  # one step of the rounded mean


def test_photographs_are_processed_when_read(tmp_path):
    made = make_diabetic_retinopathy(tmp_path)
    data = vtab(task="diabetic_retinopathy", root=str(tmp_path), split="train800", check_counts=False)
    image = data.splits["test"].read(0)
    assert isinstance(image, np.ndarray)
    assert image.shape == (540, 540, 3)
    assert (fundus.process(np.zeros((40, 50, 3), np.uint8)) == 128).all()  # a black photograph
    assert len(data.splits["train"]) == len(made.labels["train"])
