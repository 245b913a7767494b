"""A bar chart of measured values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mixer_lightning.reports.figures import label, new_figure, save_figure


def draw(path: Path, values: Mapping[str, float], *, title: str, emphasis: str = "") -> None:
    """A PNG of horizontal bars in the order given; those whose name begins with `emphasis` have their own colour."""
    figure = new_figure(9, 0.8 + 0.36 * len(values))
    axes = figure.subplots()
    names = [label(name) for name in values]
    colours = ["C0" if emphasis and name.startswith(emphasis) else "0.65" for name in values]
    bars = axes.barh(names, list(values.values()), color=colours)
    axes.bar_label(bars, labels=[f" {value:,.0f}" for value in values.values()], fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_title(label(title), loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)
