"""Effective receptive fields as numbers, a page and a picture, from the files of `mixer study receptive`.

A map [S, S] holds how much each pixel of an image of side S matters to one feature. Everything here takes maps as
NumPy arrays of any scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mixer_lightning.reports import markdown

Map = npt.NDArray[np.floating[Any]]
Line = Mapping[str, str]

INITIAL = "initialisation"  # what rows call new weights
SHARES = (50, 90, 95)  # percent of a map's mass
#: Luo et al. count pixels of more than 1 - 95.45 % of the centre, as a Gaussian has within two deviations.
LUO_THRESHOLD = 1 - 0.9545
DECADES = 4  # of the picture's scale of colours


def centre_of(position: int, *, grid: int, size: int) -> float:
    """Where the middle of a position's share of the image lies, in pixels from its border."""
    return (position + 0.5) * size / grid


def mass_by_square(field: Map, *, centre: float) -> tuple[Map, Map]:
    """(pixels, share): how many pixels squares around (centre, centre) hold inside the image, and of the mass.

    The squares grow by a pixel a side; only those that end between pixels are there. Both grow to the whole image.
    """
    away = np.abs(np.arange(len(field)) + 0.5 - centre)
    ring = np.maximum(away[:, None], away[None, :]).ravel()
    rings, index = np.unique(ring.round(6), return_inverse=True)
    weight = field.astype(np.float64).ravel() / field.sum(dtype=np.float64)
    pixels = np.bincount(index, minlength=len(rings)).cumsum().astype(np.float64)
    return pixels, np.bincount(index, weights=weight, minlength=len(rings)).cumsum()


def side_of_mass(field: Map, share: float, *, centre: float) -> float:
    """Side of the smallest square around the centre with a share of the mass: the root of its pixels in the image."""
    pixels, shares = mass_by_square(field, centre=centre)
    return math.sqrt(pixels[int(np.argmax(shares >= share - 1e-9))])


def luo_side(field: Map) -> float:
    """Luo et al.'s size of a field: the root of the number of pixels above LUO_THRESHOLD of the largest."""
    return math.sqrt(int((field > LUO_THRESHOLD * field.max()).sum()))


# ------------------------------------------------------------------------------------------------- page


COLUMNS = (
    "model", "weights", "px", "grid", "50 %, px", "90 %, px", "95 %, px", "95 %, of the side", "Luo, px",
    "theoretical, px", "of the image inside it", "of the mass inside it",
)  # fmt: skip


def cells(row: Line) -> list[str]:
    """The cells of a row."""
    theoretical = row["theoretical_side"]
    whole = theoretical == "image"
    inside = [
        f"{100 * float(row[key]):.1f} %" if row[key] else "-" for key in ("image_inside", "mass_inside")
    ]
    return [
        row["model"],
        row["weights"],
        row["image_size"],
        f"{row['grid']}x{row['grid']}",
        *(f"{float(row[f'side_{share}']):.1f}" for share in SHARES),
        f"{100 * float(row['side_95']) / int(row['image_size']):.0f} %",
        f"{float(row['luo_side']):.1f}",
        "whole image" if whole else theoretical or "-",
        *inside,
    ]


def finding(rows: Sequence[Line]) -> str:
    """How wide the fields are, the widest first; whether layers that see the whole image make them wider; training."""
    parts = sorted(((_part(row), f"{row['model']} ({row['weights']})") for row in rows), reverse=True)
    widths = "; ".join(f"{100 * width:.0f} % {name}" for width, name in parts)
    sentences = [f"Half of the gradient lies in a square with this part of the image's side: {widths}."]
    everything = [row for row in rows if row["theoretical_side"] == "image"]
    local = [row for row in rows if row["theoretical_side"] not in ("image", "")]
    if everything and local:
        least, most = min(everything, key=_part), max(local, key=_part)
        sentences.append(
            "The claim that a network whose layers reach the whole image at once depends on more of it than one of "
            f"convolutions {'shows' if _part(least) > _part(most) else 'does not show'} here: the least of the former "
            f"is {100 * _part(least):.0f} % ({least['model']}, {least['weights']}), the most of the latter "
            f"{100 * _part(most):.0f} % ({most['model']}, {most['weights']})."
        )
    changes = [
        f"{100 * (_part(row) - _part(before)):+.0f} points ({row['model']})"
        for row in rows
        if row["weights"] != INITIAL
        for before in rows
        if before["weights"] == INITIAL
        and (before["model"], before["image_size"]) == (row["model"], row["image_size"])
    ]
    if changes:
        sentences.append(f"Training changes it by {', '.join(changes)}.")
    return " ".join(sentences)


def _part(row: Line) -> float:
    """The side of the square that holds half of the map, of the image's side."""
    return float(row["side_50"]) / int(row["image_size"])


def page(
    rows: Sequence[Line],
    *,
    picture: str,
    machine: str,
    versions: Mapping[str, str],
    command: Sequence[str],
    commit: str | None = None,
) -> str:
    """The page of some rows."""
    runs = {row["model"]: row["about"] for row in rows if row.get("about")}
    uniform = ", ".join(f"{100 * math.sqrt(share / 100):.0f}" for share in SHARES)
    text = [
        "# Effective receptive fields",
        "",
        "How much each pixel matters to the feature in the middle of the last map: the gradient of that feature (Luo",
        "et al., arXiv 1701.04128). What the paper leaves open is decided so:",
        "",
        "* **Channels**: all, each with a random sign, new for every image. Their plain sum says nothing where a",
        "  LayerNorm ends the network: it is constant. The map is the root of the mean square over images and colours.",
        "* **The middle** of a grid of h positions is number h // 2, counted from 0: of an even grid the one below and",
        "  to the right of the middle. Squares are around the middle of the theoretical field; where that is the whole",
        "  image, or unknown, around the middle of the position's own patch. What the image cuts off is not counted.",
        "* **At initialisation** BatchNorm takes its statistics from the images, as in a first training step. timm's",
        "  ResNet begins with branches that add nothing, and ResMLP, ConvNeXt with small ones: the shortcut shows.",
        "* **Images**: "
        + "; ".join(sorted({f"{row['num_images']} of {row['images']}" for row in rows}))
        + ".",
        "",
        "The table has the sides of the squares that hold 50, 90 and 95 % of the map; of a map that is the same",
        f"everywhere these are {uniform} % of the image's side. Luo: the root of the number of pixels above 4.55 % of",
        "the largest. The theoretical side counts kernels and strides alone, beyond the image's border too; `-` where",
        "attention in windows, pooling over positions or gates leave no closed form here.",
        "",
        markdown.FINDING,
        "",
        markdown.escape(finding(rows)),
        "",
        f"![maps on a logarithmic scale, and the mass in squares]({picture})",
        "",
        "## The figures",
        "",
        *markdown.provenance(machine=machine, versions=versions, command=command, commit=commit),
        *(f"* {markdown.escape(name)}: {markdown.escape(about)}" for name, about in runs.items()),
        "",
        *markdown.table(COLUMNS, map(cells, rows)),
    ]
    return "\n".join(text) + "\n"


# ---------------------------------------------------------------------------------------------- picture


def draw(path: Path, rows: Sequence[Line], maps: Mapping[str, Map]) -> None:
    """A PNG, a row for each model: its maps at initialisation and trained, then the mass over the side of the square.

    Args:
        path: where to.
        rows: of the study; those of one `model` and image size stand in one row of the picture.
        maps: {row["key"]: [S, S]}.
    """
    from mixer_lightning.reports.figures import label, new_figure, save_figure  # matplotlib: seconds

    models = list(dict.fromkeys((row["model"], row["image_size"]) for row in rows))
    width = max(sum((row["model"], row["image_size"]) == model for row in rows) for model in models)
    figure = new_figure(2.7 * width + 3.6, 2.7 * len(models) + 0.5)
    grid = figure.subplots(
        len(models), width + 1, squeeze=False, gridspec_kw={"width_ratios": [1] * width + [1.15]}
    )
    image = None
    for model, panels in zip(models, grid, strict=True):
        mine = [row for row in rows if (row["model"], row["image_size"]) == model]
        for axes in panels[len(mine) : width]:
            axes.set_axis_off()
        curves = panels[-1]
        for number, (row, axes) in enumerate(zip(mine, panels, strict=False)):
            field, size = maps[row["key"]].astype(np.float64), int(row["image_size"])
            shown = np.log10(np.maximum(field / field.max(), 10.0**-DECADES))
            image = axes.imshow(
                shown, cmap="magma", vmin=-DECADES, vmax=0, extent=(0, size, size, 0), interpolation="nearest"
            )
            if row["theoretical_first"]:
                first, end = int(row["theoretical_first"]), int(row["theoretical_end"])
                first, end = max(first, 0), min(end, size)
                axes.plot(
                    [first, end, end, first, first], [first, first, end, end, first], "--", color="C0", linewidth=1.6,
                    clip_on=False,
                )  # fmt: skip
            side = float(row["side_95"])
            axes.set_title(
                f"{label(row['model'], 26)}\n{label(row['weights'], 24)}, 95 % in {side:.0f} of {size} px",
                fontsize=8,
            )
            axes.set_xticks([0, size])
            axes.set_yticks([0, size])
            axes.tick_params(labelsize=7)
            pixels, share = mass_by_square(field, centre=float(row["centre"]))
            curves.plot(
                np.sqrt(pixels) / size, 100 * share, f"C{number + 1}", label=label(row["weights"], 24)
            )
        sides = np.linspace(0, 1, 50)
        curves.plot(sides, 100 * sides**2, ":", color="0.5", label="the same everywhere")
        curves.set(xlim=(0, 1), ylim=(0, 101))
        curves.set_title("share of the gradient in the square, %", fontsize=8)
        curves.tick_params(labelsize=7)
        curves.grid(visible=True, alpha=0.3)
        curves.legend(fontsize=7, framealpha=0.8, loc="lower right")
        curves.spines[["top", "right"]].set_visible(False)
    grid[-1][-1].set_xlabel("side of the square / side of the image", fontsize=8)
    if image is not None:
        bar = figure.colorbar(image, ax=grid, location="bottom", shrink=0.6, aspect=40, pad=0.02)
        bar.set_label(
            "log10 of the gradient / its largest; dashed: theoretical field, cut by the image", fontsize=8
        )
        bar.ax.tick_params(labelsize=7)
    save_figure(figure, path)
