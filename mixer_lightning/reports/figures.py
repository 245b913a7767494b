"""Figures without a display, written atomically."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mixer_lightning.files import atomic_write


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, which needs no display and no pyplot."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Replace `path` by a PNG of the figure: all of it, or nothing."""

    def write(file: BinaryIO) -> None:
        figure.savefig(file, format="png", dpi=110)

    atomic_write(path, write)
