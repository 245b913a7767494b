"""Figures of a report as PNG and SVG files."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from mixer_lightning.reports.charts import FEW_POINTS, Chart, Panel, Series
from mixer_lightning.reports.figures import label, new_figure, save_figure
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
    height = 1.2 + 0.3 * bars if bars else 4.6
    figure = new_figure(9 if len(chart.panels) == 1 else 13, height)
    for axes, panel in zip(
        figure.subplots(1, len(chart.panels), squeeze=False)[0], chart.panels, strict=True
    ):
        _bars(axes, panel) if bars else _points(axes, panel)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(label(chart.title), fontsize=11)
    return figure


def _points(axes: Axes, panel: Panel) -> None:
    points = sum(len(series.x) for series in panel.series if _is_named(series))
    for i, series in enumerate(panel.series):
        _draw_series(axes, series, i)
        if _is_named(series):
            for x, y, name in zip(series.x, series.y, series.names, strict=True):
                size = 7 if points <= 16 else 5.5
                text = label(name.split(",")[0].replace(" 224 px", ""), 28)
                note = axes.annotate(
                    text, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=size, color="0.3"
                )
                if series.style == "line":  # which runs through it
                    note.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1})
    if panel.log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.margins(x=0.12)
    axes.set_xlabel(panel.x)
    axes.set_ylabel(panel.y)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=7.5)


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
        axes.bar_label(drawn, labels=[f" {value:,.4g}" for value in series.y], fontsize=8)
    axes.set_yticks(range(len(names)), [label(str(name), 60) for name in names], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel(panel.x)
    if len(panel.series) > 1:
        axes.legend(frameon=False, fontsize=8)
