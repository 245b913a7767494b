"""confusion.png and misclassified.png, from the confusion.npz that evals/confusion.py left in a run directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from mixer_lightning import results
from mixer_lightning.reports.figures import label, new_figure, save_figure

CONFUSION_PNG = "confusion.png"
MISCLASSIFIED_PNG = "misclassified.png"
NUMBERED = 30  # up to so many classes, cells show their counts
COLUMNS = 5  # of the grid of images


def draw(run_dir: Path) -> list[Path]:
    """Write both figures, and say where; none where there is no confusion.npz."""
    path = run_dir / results.CONFUSION
    if not path.exists():
        return []
    with np.load(path, allow_pickle=False) as content:
        found = {name: content[name] for name in content.files}
    pictures = {run_dir / CONFUSION_PNG: _matrix(found), run_dir / MISCLASSIFIED_PNG: _grid(found)}
    for picture, figure in pictures.items():
        save_figure(figure, picture)
    return list(pictures)


def _matrix(found: dict[str, Any]) -> Figure:
    """A row for each true class, in shares of its images; the root of the share gives the colour, for the rare ones."""
    matrix, classes = found["matrix"], found["classes"].tolist()
    num_classes, total = len(classes), int(matrix.sum())
    side = min(max(4.5, 2.5 + 0.35 * num_classes), 24.0)
    figure = new_figure(side + 0.9, side)
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    bar = figure.colorbar(image, ax=axes, shrink=0.6, ticks=[0, 0.01, 0.1, 0.25, 0.5, 1])
    bar.ax.set_yticklabels(["0", "1 %", "10 %", "25 %", "50 %", "100 %"], fontsize=8)
    bar.set_label("of the true class", fontsize=9)
    _name_classes(axes, classes, inches=side / num_classes)
    if num_classes <= NUMBERED:
        _number_cells(axes, matrix, shares)
    right = int(np.trace(matrix))
    axes.set_title(
        f"{label(str(found['split']))}: {right:,} of {total:,} right, {100 * right / max(total, 1):.2f} %",
        loc="left",
        fontsize=10,
    )
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return figure


def _name_classes(axes: Axes, classes: Sequence[str], *, inches: float) -> None:
    """Labels on both axes, no larger than their row, of which there are `inches` for each."""
    size = min(9.0, max(3.0, 0.75 * 72 * inches))
    names = [label(name, 24) for name in classes]
    axes.set_xticks(range(len(names)), names, fontsize=size, rotation=90 if max(map(len, names)) > 2 else 0)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.tick_params(length=0)


def _number_cells(axes: Axes, matrix: npt.NDArray[np.int64], shares: npt.NDArray[np.float64]) -> None:
    size = 9 if len(matrix) <= 12 else 6
    for row, column in zip(*np.nonzero(matrix), strict=True):
        colour = "white" if shares[row, column] > 0.4 else "black"
        axes.text(
            column, row, f"{matrix[row, column]:,}", ha="center", va="center", fontsize=size, color=colour
        )


def _grid(found: dict[str, Any]) -> Figure:
    """The images whose wrong prediction was the surest, with their own name and those of both classes."""
    images, classes = found["images"], found["classes"].tolist()
    wrong = int(found["matrix"].sum() - np.trace(found["matrix"]))
    rows = max(1, -(-len(images) // COLUMNS))
    figure = new_figure(2.0 * COLUMNS, 2.5 * rows + 0.4)
    grid = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for i, (axes, pixels) in enumerate(zip(grid, images, strict=False)):
        axes.imshow(pixels, interpolation="nearest")
        true, predicted = (label(classes[found[key][i]], 18) for key in ("true", "predicted"))
        sure = f"{100 * found['probability'][i]:.0f} %"
        axes.set_title(f"true: {true}\npredicted, {sure}: {predicted}", loc="left", fontsize=7.5)
        if "names" in found:
            name = _tail(str(found["names"][i]), 28)
            axes.text(0, -0.03, name, transform=axes.transAxes, va="top", fontsize=7)
    shown = f"the {len(images):,} surest of {wrong:,} misclassified" if wrong else "none is misclassified"
    figure.suptitle(f"{label(str(found['split']))}: {shown}", fontsize=10)
    return figure


def _tail(name: str, width: int) -> str:
    """The end of a file's name, which tells more than its beginning."""
    return label(name if len(name) <= width else f"…{name[1 - width :]}")
