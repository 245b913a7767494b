"""report.png of a prepared data set: how many images its classes have, from report.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mixer_lightning.reports.figures import new_figure, save_figure

MAX_BARS = 40


def plot_class_counts(report_path: Path, picture: Path) -> None:
    """Write the histogram of a report, a panel for each split."""
    report = json.loads(report_path.read_text(encoding="utf-8"))
    splits = report["splits"]
    figure = new_figure(5.2 * len(splits) + 0.6, 3.8)
    for axes, (split, each) in zip(
        figure.subplots(1, len(splits), squeeze=False)[0], splits.items(), strict=True
    ):
        _histogram(axes, split, each)
    figure.suptitle(f"{report['name']}    {report['num_classes']:,} classes", fontsize=11)
    save_figure(figure, picture)


def _histogram(axes: Axes, split: str, each: dict[str, Any]) -> None:
    counts = np.asarray(each["counts"])
    # Bars cover whole numbers of images, from none on: balanced classes make one bar.
    width = -(-(int(counts.max()) + 1) // MAX_BARS)
    edges = np.arange(0, int(counts.max()) + width + 1, width) - 0.5
    axes.hist(counts, bins=edges.tolist(), color="#4477aa", edgecolor="white", linewidth=0.4)
    axes.axvline(each["median"], color="#cc6633", linewidth=1.2, label="median")
    axes.set_title(
        f"{split}: {each['images']:,} images, median {each['median']:,.0f} a class", loc="left", fontsize=10
    )
    axes.set_xlabel("images in a class")
    axes.set_ylabel("classes")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=9)
