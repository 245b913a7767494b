"""index.html: every table, figure and picture of a report in one file, which needs no server and loads nothing."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from mixer_lightning.files import write_text
from mixer_lightning.reports.charts import FEW_POINTS, Chart, HeatMap, Panel, Series, format_rate
from mixer_lightning.reports.sources import Picture
from mixer_lightning.reports.tables import MEASURED, Provenance, Table

#: A palette whose colours are told apart on light and dark ground, also by most of the colour-blind (Okabe and Ito).
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#8c6bb1",
    "#a6761d",
    "#7f7f7f",
    "#1b9e77",
)
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "pentagon", "hexagon")


def write_page(
    path: Path, *, tables: Sequence[Table], charts: Sequence[Chart], pictures: Sequence[Picture]
) -> None:
    """Write the page."""
    made: dict[str, Provenance] = {}
    for table in tables:
        made |= {file: table.made.get(file, Provenance()) for file in table.files()}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("page.html").render(
        tables=tables,
        charts=[{"chart": chart, "plots": plots(chart)} for chart in charts],
        pictures=[
            {"caption": each.caption, "file": each.path.as_posix(), "data": _data_uri(each.path)}
            for each in pictures
        ],
        made=made,
        anchors={file: f"made-{i}" for i, file in enumerate(made, start=1)},
        measured=MEASURED,
        plotly_js=get_plotlyjs().replace("</script", "<\\/script"),
    )
    write_text(path, text)


def _plain(text: str) -> str:
    """A name out of the data as Plotly is to show it, which takes <b>, <a> and &amp; for its own markup."""
    return html.escape(text, quote=False)


def plots(chart: Chart) -> list[dict[str, Any]]:
    """What is plotted of a chart: for each panel what it is, and Plotly's data and layout."""
    panels = [
        {
            "label": " against ".join(word for word in (panel.y, panel.x) if word),
            "figure": figure(panel, [chart.number_of(each) for each in panel.series]),
        }
        for panel in chart.panels
    ]
    return panels + [
        {"label": f"{each.what}: {each.y} against {each.x} {each.title}".strip(), "figure": heat_map(each)}
        for each in chart.heat_maps
    ]


def heat_map(grid: HeatMap) -> dict[str, Any]:
    """A grid as Plotly's data and layout; each cell shows its number."""
    text = [[grid.text(value) for value in row] for row in grid.values]
    cells = go.Heatmap(
        z=[list(row) for row in grid.values],
        x=[_plain(name) for name in grid.columns],
        y=[_plain(name) for name in grid.rows],
        text=text,
        texttemplate="%{text}",
        colorscale="Viridis",
        hoverongaps=False,
        xgap=1,
        ygap=1,
        colorbar={"title": {"text": _plain(grid.what), "side": "right"}, "thickness": 12},
        hovertemplate=f"{_plain(grid.y)} %{{y}}<br>{_plain(grid.x)} %{{x}}<br>%{{text}}<extra></extra>",
    )
    drawn = go.Figure([cells])
    drawn.update_layout(
        template="none",
        height=170 + 44 * len(grid.rows),
        margin={"l": 56, "r": 16, "t": 40, "b": 48},
        title={"text": _plain(grid.title), "font": {"size": 13}},
    )
    drawn.update_xaxes(title_text=_plain(grid.x), type="category", automargin=True)
    drawn.update_yaxes(title_text=_plain(grid.y), type="category", automargin=True, autorange="reversed")
    plain: dict[str, Any] = drawn.to_plotly_json()
    plain["layout"].pop("template", None)
    return plain


def figure(panel: Panel, numbers: Sequence[int] | None = None) -> dict[str, Any]:
    """A panel as Plotly's data and layout; colours of text and grid are the page's.

    Args:
        panel: what is drawn.
        numbers: those of its series, by which they have their colours; default: from 0 on.
    """
    bars = [series for series in panel.series if series.style == "bars"]
    numbers = range(len(panel.series)) if numbers is None else numbers
    drawn = go.Figure([_trace(series, i) for series, i in zip(panel.series, numbers, strict=True)])
    rows = max((len(series.x) for series in bars), default=0)
    drawn.update_layout(
        template="none",
        height=max(240, 110 + 26 * rows * max(1, len(bars))) if bars else 440,
        margin={"l": 10 if bars else 56, "r": 56 if bars else 16, "t": 40, "b": 48},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        showlegend=len(panel.series) > 1,
        hovermode="closest",
    )
    drawn.update_xaxes(title_text=panel.x, type="log" if panel.log_x else "-", automargin=True)
    if panel.log_x:
        drawn.update_xaxes(dtick="D2")
    drawn.update_yaxes(title_text=panel.y, automargin=True)
    if bars:
        drawn.update_yaxes(autorange="reversed", type="category")
    plain: dict[str, Any] = drawn.to_plotly_json()
    plain["layout"].pop("template", None)
    return plain


def _trace(series: Series, i: int) -> go.Scatter | go.Bar:
    colour = COLOURS[i % len(COLOURS)]
    if series.style == "bars":
        return go.Bar(
            x=list(series.y),
            y=[_plain(str(name)) for name in series.x],
            name=_plain(series.name),
            orientation="h",
            marker={"color": colour},
            text=[format_rate(value) for value in series.y],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}<br>%{text}<extra>%{fullData.name}</extra>",
        )
    is_measured = series.kind == MEASURED
    hover = "%{text}<br>%{x}, %{y:.2f}<extra>" + (MEASURED if is_measured else "published") + "</extra>"
    return go.Scatter(
        x=list(series.x),
        y=list(series.y),
        text=[_plain(name) for name in series.names],
        name=_plain(series.name),
        mode=_mode(series),
        line={"dash": "dash", "color": "#888888"} if series.style == "frontier" else {"color": colour},
        marker={
            "color": colour,
            "size": 5 if series.style == "line" else 14 if is_measured else 10,
            "symbol": _symbol(series, i),
            "line": {"width": 0 if series.style == "line" else 2},
        },
        hovertemplate=hover,
        hoverinfo="skip" if series.style == "frontier" else None,
    )


def _mode(series: Series) -> str:
    if series.style == "points":
        return "markers"
    is_marked = series.style == "line" and len(series.x) <= FEW_POINTS
    return "lines+markers" if is_marked else "lines"


def _symbol(series: Series, i: int) -> str:
    """What was measured is filled, what is published an outline."""
    if series.style == "line":
        return "circle"
    return "star" if series.kind == MEASURED else f"{SYMBOLS[i % len(SYMBOLS)]}-open"


def _data_uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
