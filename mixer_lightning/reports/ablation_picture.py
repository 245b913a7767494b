"""The picture of the study of ConvMixer's parts: patch and kernel as a heat map, the changes beside the published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from mixer_lightning.reports.ablation import BASELINE, Change, Line, changes, grid, noise
from mixer_lightning.reports.figures import label, new_figure, save_figure
from mixer_lightning.reports.tables import MEASURED


def draw(path: Path, rows: Sequence[Line], *, data: str) -> None:
    """A PNG: accuracy over patch and kernel as a heat map, and differences of the changes beside the published."""
    shown = [each for each in changes(rows) if each.difference is not None]
    kernels = {kernel for _, kernel in grid(rows)}
    left = 1.6 + 0.9 * len(kernels)
    figure = new_figure(left + 6.2 * bool(shown), max(2.6 + 0.2 * len(kernels), 1.4 + 0.42 * len(shown)))
    axes = figure.subplots(1, 2 if shown else 1, squeeze=False, width_ratios=[left, 5.0] if shown else None)[
        0
    ]
    _heat_map(axes[0], rows)
    axes[0].set_title(f"top-1 on {label(data)}, %", loc="left", fontsize=10)
    if shown:
        _bars(axes[1], shown, limit=noise(rows))
    save_figure(figure, path)


def _heat_map(axes: Axes, rows: Sequence[Line]) -> None:
    cells = grid(rows)
    patches, kernels = (sorted({place[i] for place in cells}) for i in (0, 1))
    values = [
        [cells[patch, kernel].accuracy if (patch, kernel) in cells else float("nan") for kernel in kernels]
        for patch in patches
    ]
    image = axes.imshow(values, cmap="viridis", aspect="auto")
    low, high = image.get_clim()
    own = next((row for row in rows if row["change"] == BASELINE), None)
    for (patch, kernel), mean in cells.items():
        x, y = kernels.index(kernel), patches.index(patch)
        is_dark = mean.accuracy < (low + high) / 2
        colour = "white" if is_dark else "black"
        axes.text(x, y, str(mean), ha="center", va="center", color=colour, fontsize=10)
        if own and (int(own["patch_size"]), int(own["kernel_size"])) == (patch, kernel) and len(cells) > 1:
            frame = Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, fill=False, edgecolor="#d55e00", linewidth=2)
            axes.add_patch(frame)
    axes.set_xticks(range(len(kernels)), [str(kernel) for kernel in kernels])
    axes.set_yticks(range(len(patches)), [str(patch) for patch in patches])
    axes.set_xlabel("kernel")
    axes.set_ylabel("patch")


def _bars(axes: Axes, shown: Sequence[Change], *, limit: float) -> None:
    axes.axvspan(-limit, limit, color="0.92", zorder=0, label=f"within {limit:.1f} points")
    places = range(len(shown))
    axes.barh(
        places, [each.difference or 0.0 for each in shown], height=0.55, color="#0072b2", label=MEASURED
    )
    told = [
        (y, float(each.published_difference))
        for y, each in zip(places, shown, strict=True)
        if each.published_difference
    ]
    axes.scatter(
        [x for _, x in told],
        [y for y, _ in told],
        marker="D",
        facecolors="white",
        edgecolors="#d55e00",
        linewidths=1.6,
        zorder=3,
        label="published, unverified",
    )
    for y, each in zip(places, shown, strict=True):
        x = each.difference or 0.0
        axes.annotate(
            f"{x:+.1f}",
            (x, y),
            xytext=(4 if x >= 0 else -4, 0),
            textcoords="offset points",
            ha="left" if x >= 0 else "right",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(places, [label(each.what, 50) for each in shown], fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.axvline(0, color="0.3", linewidth=0.8)
    axes.set_xlabel("difference in accuracy, points")
    axes.set_title("one part exchanged", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="best")
