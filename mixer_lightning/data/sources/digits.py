"""The 1,797 handwritten digits that come with scikit-learn: a data set that needs no download."""

from __future__ import annotations

import numpy as np

from mixer_lightning.data.sources import Dataset
from mixer_lightning.data.sources.arrays import Arrays


def digits() -> Dataset:
    """8x8 RGB digits in ten classes: 1,437 train, 360 test, stratified by class, always the same split.

    Grey levels 0..16 become 0..255, equal in all three channels. Source: `sklearn.datasets.load_digits`, the test
    part of UCI's "Optical Recognition of Handwritten Digits".
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # [1797, 8, 8]
    pixels = np.repeat(grey[..., None], 3, axis=-1)  # [1797, 8, 8, 3]
    labels = bunch.target.astype(np.int64)
    train, test = train_test_split(np.arange(len(labels)), test_size=360, random_state=0, stratify=labels)
    parts = {"train": np.sort(train), "test": np.sort(test)}
    return Dataset(
        name="digits",
        classes=[str(digit) for digit in range(10)],
        splits={
            split: Arrays("digits", pixels[rows], labels[rows], rows=rows.tolist())
            for split, rows in parts.items()
        },
    )
