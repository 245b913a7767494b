"""Figures of a report as PNG and SVG files."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from mixer_lightning.reports.charts import FEW_POINTS, Chart, HeatMap, Panel, Series, format_rate
from mixer_lightning.reports.figures import label, lay_out, new_figure, save_figure
from mixer_lightning.reports.point_labels import name_points
from mixer_lightning.reports.tables import MEASURED

#: A series has the marker and the colour of its number.
MARKERS = "osD^vP*Xh<>p"
NUM_COLOURS = 10


def draw(folder: Path, chart: Chart) -> Path:
    """<name>.png and <name>.svg in `folder`; the path of the PNG."""
    figure = _figure(chart)
    path = folder / f"{chart.name}.png"
    save_figure(figure, path)
    save_figure(figure, path.with_suffix(".svg"))
    return path


def draw_png(path: Path, chart: Chart) -> None:
    """The same as one PNG file."""
    save_figure(_figure(chart), path)


def _figure(chart: Chart) -> Figure:
    bars = max(
        (len(series.x) for panel in chart.panels for series in panel.series if series.style == "bars"),
        default=0,
    )
    parts = [*chart.panels, *chart.heat_maps]
    rows = max((len(grid.rows) for grid in chart.heat_maps), default=0)
    height = 1.2 + 0.3 * bars if bars else 1.8 + 0.42 * rows if rows else 5.0
    figure = new_figure(9 if len(parts) == 1 else 6.5 * len(parts), height)
    columns = figure.subplots(1, len(parts), squeeze=False)[0]
    for axes, panel in zip(columns, chart.panels, strict=False):
        _bars(axes, panel) if bars else _plot(axes, panel, chart)
        axes.spines[["top", "right"]].set_visible(False)
    for axes, grid in zip(columns, chart.heat_maps, strict=False):
        _heat_map(axes, grid)
    figure.suptitle(label(chart.title), fontsize=11)
    if not bars and chart.panels:
        found = [axes.get_legend_handles_labels() for axes in columns]
        known = {
            name: handle for handles, names in found for handle, name in zip(handles, names, strict=True)
        }
        handles = list(known.values())
        figure.legend(handles, list(known), loc="outside lower center", ncols=4, frameon=False, fontsize=7.5)
    lay_out(figure)
    if not bars:
        for axes, panel in zip(columns, chart.panels, strict=False):
            _name_points(axes, panel)
    return figure


def _plot(axes: Axes, panel: Panel, chart: Chart) -> None:
    for series in panel.series:
        _draw_series(axes, series, chart.number_of(series))
    if panel.log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.margins(x=0.12, y=0.08)
    axes.set_xlabel(panel.x)
    axes.set_ylabel(panel.y)
    axes.grid(alpha=0.3)


def _name_points(axes: Axes, panel: Panel) -> None:
    named = [
        (x, y, label(name.split(",")[0].replace(" 224 px", ""), 28))
        for series in panel.series
        if _is_named(series)
        for x, y, name in zip(cast("tuple[float, ...]", series.x), series.y, series.names, strict=True)
    ]
    name_points(axes, named, fontsize=7 if len(named) <= 16 else 5.5)


def _is_named(series: Series) -> bool:
    """Whether each point has a name of its own beside it: those of a curve only where their beginnings differ."""
    beginnings = {name.partition(",")[0] for name in series.names}
    return series.style == "points" or (series.style == "line" and len(beginnings) > 1)


def _draw_series(axes: Axes, series: Series, i: int) -> None:
    colour, name = f"C{i % NUM_COLOURS}", label(series.name, 40)
    if series.style == "frontier":
        axes.plot(series.x, series.y, "--", color="0.5", linewidth=1.2, label=name, zorder=0)
    elif series.style == "line":
        marker = "o" if len(series.x) <= FEW_POINTS else None
        axes.plot(series.x, series.y, color=colour, marker=marker, markersize=3, linewidth=1.4, label=name)
    else:
        # what was measured is filled and large, what is published an outline
        is_measured = series.kind == MEASURED
        face = "black" if is_measured else "none"
        marker = "*" if is_measured else MARKERS[i % len(MARKERS)]
        axes.scatter(
            series.x,
            series.y,
            s=110 if is_measured else 36,
            marker=marker,
            facecolors=face,
            edgecolors="black" if is_measured else colour,
            label=name,
        )


def _bars(axes: Axes, panel: Panel) -> None:
    names = list(dict.fromkeys(name for series in panel.series for name in series.x))
    width = 0.8 / len(panel.series)
    for i, series in enumerate(panel.series):
        places = [names.index(name) + (i - (len(panel.series) - 1) / 2) * width for name in series.x]
        drawn = axes.barh(places, series.y, height=width, color=f"C{i}", label=label(series.name))
        axes.bar_label(drawn, labels=[f" {format_rate(value)}" for value in series.y], fontsize=8)
    axes.set_yticks(range(len(names)), [label(str(name), 60) for name in names], fontsize=8)
    axes.invert_yaxis()
    if panel.log_x:
        axes.set_xscale("log")
    axes.margins(x=0.12, y=0.01)
    axes.set_xlabel(panel.x)
    if len(panel.series) > 1:
        axes.legend(frameon=False, fontsize=8)


def _heat_map(axes: Axes, grid: HeatMap) -> None:
    """Colours and numbers; a cell without a number is left white."""
    values = np.array([[np.nan if value is None else value for value in row] for row in grid.values])
    image = axes.imshow(values, cmap="viridis", aspect="auto")
    low, high = (float(value) for value in image.get_clim())
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            dark = high == low or (value - low) / (high - low) < 0.6
            axes.text(
                column,
                row,
                grid.text(float(value)),
                ha="center",
                va="center",
                fontsize=9,
                color="white" if dark else "black",
            )
    axes.set_xticks(range(len(grid.columns)), [label(name, 24) for name in grid.columns])
    axes.set_yticks(range(len(grid.rows)), [label(name, 24) for name in grid.rows])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(label(grid.x))
    axes.set_ylabel(label(grid.y))
    axes.set_title(label(grid.title, 60), fontsize=9)
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.colorbar(image, ax=axes, label=label(grid.what), shrink=0.9)
