"""curves.png: loss, accuracy and learning rate over steps, from metrics.jsonl."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mixer_lightning import results
from mixer_lightning.reports.figures import label, new_figure, save_figure

#: A curve has the colour of its split in every run; other metrics have one by their name.
COLOURS = {"train": "C0", "val": "C1", "test": "C2", "real": "C3"}
OTHERS = ("C4", "C5", "C6", "C7", "C8", "C9")


def draw(run_dir: Path) -> None:
    """Write curves.png of a run directory."""
    rows = results.read_metrics(run_dir)
    names = list(dict.fromkeys(name for row in rows for name in row))
    figure = new_figure(13, 3.8)
    axes = figure.subplots(1, 3)
    losses = [name for name in names if name.endswith("/loss")]
    _plot(axes[0], rows, _in_order(losses), title="loss")
    accuracies = [name for name in names if name.endswith("/top1")]
    if len(accuracies) < 2:  # of training alone
        accuracies += [name for name in names if name.startswith("fewshot/")]
    _plot(axes[1], rows, _in_order(accuracies), title="accuracy, %", scale=100)
    _plot(axes[2], rows, [results.LEARNING_RATE], title="learning rate")
    epochs = rows[-1]["epoch"] if rows else 0
    figure.suptitle(label(f"{run_dir.parent.name}/{run_dir.name}    {epochs:.4g} epochs"), fontsize=11)
    save_figure(figure, run_dir / results.CURVES)


def colours(names: Sequence[str]) -> dict[str, str]:
    """The colour of each curve of a panel: no two are the same while there are enough."""
    found = {name: COLOURS[split] for name in names if (split := name.split("/")[0]) in COLOURS}
    for name in (name for name in names if name not in found):
        first = zlib.crc32(name.encode()) % len(OTHERS)
        ring = [*OTHERS[first:], *OTHERS[:first]]
        found[name] = next((colour for colour in ring if colour not in found.values()), ring[0])
    return found


def _in_order(names: Sequence[str]) -> list[str]:
    """Training first, then the splits in the order of their colours, then the others by name, 5 before 10."""

    def key(name: str) -> tuple[int, list[int | str]]:
        split = name.split("/")[0]
        parts = re.split(r"(\d+)", name)  # every second one is a number
        return [*COLOURS, split].index(split), [int(part) if part.isdigit() else part for part in parts]

    return sorted(names, key=key)


def _plot(
    axes: Axes, rows: list[dict[str, float]], names: list[str], *, title: str, scale: float = 1.0
) -> None:
    for name, colour in colours(names).items():
        points = [(row["step"], scale * row[name]) for row in rows if name in row]
        steps, values = zip(*points, strict=True) if points else ((), ())
        is_dotted = not name.startswith("train/") or len(points) == 1
        legend = f"{label(name, 32)}  {values[-1]:.4g}" if values else label(name, 32)
        marker = "o" if is_dotted else None
        axes.plot(steps, values, color=colour, marker=marker, markersize=3, linewidth=1.4, label=legend)
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("step")
    # Whole numbers at every tick: no 1e-5 in a corner that belongs to them all.
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
    axes.grid(alpha=0.3)
    if names:
        axes.legend(frameon=False, fontsize=9)
