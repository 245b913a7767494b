"""report.png of a prepared data set: how many images its classes have, from report.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mixer_lightning.reports.figures import label, new_figure, save_figure

MAX_BARS = 40
DECADES = 100  # from so many times the smallest class on, the largest is shown on a logarithmic axis


def plot_class_counts(report_path: Path, picture: Path) -> None:
    """Write the histogram of a report, a panel for each split."""
    report = json.loads(report_path.read_text(encoding="utf-8"))
    splits = report["splits"]
    figure = new_figure(5.2 * len(splits) + 0.6, 3.8)
    for axes, (split, each) in zip(
        figure.subplots(1, len(splits), squeeze=False)[0], splits.items(), strict=True
    ):
        _histogram(axes, split, each)
    figure.suptitle(f"{label(report['name'])}    {report['num_classes']:,} classes", fontsize=11)
    save_figure(figure, picture)


def _histogram(axes: Axes, split: str, each: dict[str, Any]) -> None:
    counts = np.asarray(each["counts"])
    filled = counts[counts > 0]
    is_log = bool(len(filled)) and int(filled.max()) >= DECADES * int(filled.min())
    if is_log:  # bars of equal ratio, whose edges lie between whole numbers
        edges = np.unique(np.geomspace(filled.min(), filled.max() + 1, MAX_BARS).astype(np.int64)) - 0.5
        edges[-1] = filled.max() + 0.5
        axes.set_xscale("log")
    else:  # bars cover whole numbers of images, from none on: balanced classes make one bar
        width = -(-(int(counts.max()) + 1) // MAX_BARS)
        edges = np.arange(0, int(counts.max()) + width + 1, width) - 0.5
    axes.hist(
        filled if is_log else counts, bins=edges.tolist(), color="#4477aa", edgecolor="white", linewidth=0.4
    )
    if each["median"] > 0 or not is_log:
        axes.axvline(each["median"], color="#cc6633", linewidth=1.2, label="median")
    empty = int((counts == 0).sum())
    axes.set_title(
        f"{label(split)}: {each['images']:,} images, median {each['median']:,.0f} a class"
        + (f"\n{empty:,} classes without images are not shown" if is_log and empty else ""),
        loc="left",
        fontsize=10,
    )
    axes.set_xlabel("images in a class")
    axes.set_ylabel("classes")
    if not is_log:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9)
