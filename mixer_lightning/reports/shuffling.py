"""The study of shuffled inputs: its curves and what each network loses, as in arXiv 2105.01601, figure 4."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: The inputs as rows name them, as readers do, and their colours.
INPUTS = {
    "original": ("original", "C0"),
    "patches": ("(1) patches and pixels in patches", "C1"),
    "pixels": ("(2) pixels of the whole image", "C2"),
}
ACCURACY = "fewshot_5shot"  # the column of the rows

#: Section 4.1 and figure 4 of the paper, which does not say whether in points or relative to the original.
PUBLISHED = "Mixer-B/16 drops about 45 %, ResNet about 75 % under (2); Mixer's curve of (1) is its original's"


class Drop(NamedTuple):
    """What a network loses at the end of training under an input; accuracies are fractions."""

    model: str
    input: str
    original: float
    accuracy: float

    @property
    def points(self) -> float:
        """In percentage points."""
        return 100 * (self.original - self.accuracy)

    @property
    def relative(self) -> float:
        """In percent of the original's accuracy."""
        return 100 * (self.original - self.accuracy) / self.original if self.original else 0.0


def drops(rows: Sequence[Mapping[str, Any]]) -> list[Drop]:
    """Of every model, under each shuffled input, from the last row of each curve."""
    last = {(row["model"], row["input"]): row[ACCURACY] for row in rows}
    return [
        Drop(model, kind, last[model, "original"], accuracy)
        for (model, kind), accuracy in last.items()
        if kind != "original" and (model, "original") in last
    ]


def drop_rows(found: Sequence[Drop]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Columns and cells of the table."""
    columns = ("model", "input", "original, %", "shuffled, %", "drop, points", "drop, relative %")
    return columns, [
        [
            drop.model,
            INPUTS[drop.input][0],
            f"{100 * drop.original:.1f}",
            f"{100 * drop.accuracy:.1f}",
            f"{drop.points:.1f}",
            f"{drop.relative:.0f}",
        ]
        for drop in found
    ]


def draw(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    examples: Mapping[str, npt.NDArray[np.uint8]],
    *,
    data: str,
    details: Mapping[str, str],
) -> None:
    """A PNG: one image [S, S, 3] under each input, and for each model accuracy over steps; `details` under its name."""
    from mixer_lightning.reports.figures import label, new_figure, save_figure  # matplotlib: seconds

    models = list(dict.fromkeys(row["model"] for row in rows))
    figure = new_figure(2.0 + 4.2 * len(models), 4.4)
    grid = figure.add_gridspec(3, 1 + len(models), width_ratios=[1.5] + [4.2] * len(models))
    for number, (kind, (name, colour)) in enumerate(INPUTS.items()):
        axes = figure.add_subplot(grid[number, 0])
        axes.imshow(examples[kind], interpolation="nearest")
        axes.set_title(name.split(" ")[0] if kind != "original" else name, fontsize=9, color=colour)
        axes.set_xticks([])
        axes.set_yticks([])
    first: Axes | None = None
    for number, model in enumerate(models):
        axes = figure.add_subplot(grid[:, 1 + number], sharey=first)
        first = first or axes
        lines = [model, *textwrap.wrap(details[model], 64)]
        title = "\n".join(map(label, lines))
        _curves(axes, [row for row in rows if row["model"] == model], title=title)
        if not number:
            axes.set_ylabel(f"linear 5-shot top-1 on {label(data)}, %")
    assert first is not None
    first.set_ylim(0, 108 * max(row[ACCURACY] for row in rows))  # of all: a shared axis
    save_figure(figure, path)


def _curves(axes: Axes, rows: Sequence[Mapping[str, Any]], *, title: str) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for kind, (name, colour) in INPUTS.items():
        points = [(row["step"], 100 * row[ACCURACY]) for row in rows if row["input"] == kind]
        if points:
            steps, values = zip(*points, strict=True)
            shown = f"{name}  {values[-1]:.1f}"
            axes.plot(steps, values, color=colour, marker="o", markersize=3, linewidth=1.4, label=shown)
    axes.set_title(title, loc="left", fontsize=8)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
