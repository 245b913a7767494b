"""first_batch.png: a grid of images with a line or two under each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mixer_lightning.reports.figures import label, new_figure, save_figure

COLUMNS = 8
INCHES = 1.3  # of an image
MAX_CHARACTERS = 20  # of a line under an image


def draw(path: Path, images: npt.NDArray[np.uint8], captions: Sequence[str]) -> None:
    """Write a picture of images [B, S, S, 3] with captions of up to two lines.

    It is one mosaic, since an axis for each takes seconds.
    """
    columns = min(COLUMNS, len(images))
    rows, size = math.ceil(len(images) / columns), images.shape[1]
    gap = max(1, round(0.3 * size))  # under each image; its caption stands there
    mosaic = np.full((rows * (size + gap), columns * (size + gap), 3), 255, np.uint8)
    figure = new_figure(columns * INCHES, rows * INCHES)
    axes = figure.subplots()
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        top, left = (size + gap) * (index // columns), (size + gap) * (index % columns)
        mosaic[top : top + size, left : left + size] = image
        short = "\n".join(label(line, MAX_CHARACTERS) for line in caption.split("\n"))
        axes.text(left + size / 2 - 0.5, top + size, short, fontsize=6, ha="center", va="top")
    axes.imshow(mosaic, interpolation="nearest")
    axes.set_axis_off()
    save_figure(figure, path)
