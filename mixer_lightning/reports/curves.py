"""curves.png: loss, accuracy and learning rate over steps, from metrics.jsonl."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes

from mixer_lightning import results
from mixer_lightning.reports.figures import new_figure, save_figure


def draw(run_dir: Path) -> None:
    """Write curves.png of a run directory."""
    rows = results.read_metrics(run_dir)
    figure = new_figure(13, 3.8)
    axes = figure.subplots(1, 3)
    _plot(axes[0], rows, ["train/loss"], title="loss")
    top1 = sorted({name for row in rows for name in row if name.endswith("/top1")}, reverse=True)
    _plot(axes[1], rows, top1, title="top-1, %", scale=100)
    _plot(axes[2], rows, ["train/lr"], title="learning rate")
    epochs = rows[-1]["epoch"] if rows else 0
    figure.suptitle(f"{run_dir.parent.name}/{run_dir.name}    {epochs:.4g} epochs", fontsize=11)
    save_figure(figure, run_dir / results.CURVES)


def _plot(
    axes: Axes, rows: list[dict[str, float]], names: list[str], *, title: str, scale: float = 1.0
) -> None:
    for name in names:
        points = [(row["step"], scale * row[name]) for row in rows if name in row]
        steps, values = zip(*points, strict=True) if points else ((), ())
        is_dotted = not name.startswith("train/") or len(points) == 1
        label = f"{name}  {values[-1]:.4g}" if values else name
        axes.plot(steps, values, marker="o" if is_dotted else None, markersize=3, linewidth=1.4, label=label)
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    if len(names) > 1:
        axes.legend(frameon=False, fontsize=9)
