"""Pictures of weights, from the .npz files of `mixer study token_mixing`: what units and kernels look like.

N units   h, w sides of the grid on which the weights of a unit stand   C kernels of the stem   P their side
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from numpy.typing import NDArray

from mixer_lightning.files import atomic_write
from mixer_lightning.reports.figures import label, new_figure, save_figure
from mixer_lightning.reports.token_mixing import DEPTHWISE, TOKEN_MIXING

TITLES = {
    TOKEN_MIXING: "First layer of token mixing: the weights of each hidden unit on the grid of patches",
    DEPTHWISE: "Depthwise kernels",
}
#: What the pictures of each kind of layer are called.
WORDS = {TOKEN_MIXING: "units", DEPTHWISE: "depthwise"}
INITIAL = "at initialisation"

DPI = 110  # of save_figure
MARGIN, TITLE, LINE = 16, 24, 17  # pixels
PANELS = 4  # side by side, at most
PANEL = 330  # pixels that a panel is to have at least, where its cells can be enlarged to it
WIDEST = 3  # units or pairs side by side for two below each other: the shape of a panel
COLOURS = "RdBu_r"
CLIPPED = 0.005  # of the weights of a checkpoint may lie beyond the ends of its colour scale
PAPER = 255

HEURISTIC = (
    "Order: mean frequency of the 2-D power spectrum without its constant part, from low to high, left to right and",
    "down; after each unit its closest opposite, the most negative cosine similarity of those left (greedy). Both are",
    "choices of this program: the paper (arXiv 2105.01601, Fig. 5 and 6) does not specify its heuristic.",
)


class Layer(NamedTuple):
    """Units of a layer [N, h, w], and the order in which they are shown: [places], -1 for an empty one."""

    name: str
    images: NDArray[np.float32]
    order: NDArray[np.int64]

    @property
    def shown(self) -> NDArray[np.float32]:
        """The images in their places, NaN in an empty one: [places, h, w]."""
        blank = np.full((1, *self.images.shape[1:]), np.nan, np.float32)
        return np.concatenate([self.images, blank])[self.order]


@dataclass
class Weights:
    """What is drawn of a checkpoint: layers of each kind, one of each before training, and the stem [C, P, P, 3]."""

    name: str
    model: str
    layers: dict[str, list[Layer]]
    initial: dict[str, Layer] = field(default_factory=dict)
    stem: NDArray[np.float32] | None = None


def save(path: Path, weights: Weights) -> None:
    """Write a file that `load` reads: arrays `<kind>/<layer>` with `order/` and `initial/` before their names."""
    arrays: dict[str, Any] = {"name": np.array(weights.name), "model": np.array(weights.model)}
    for kind, layers in weights.layers.items():
        for layer in layers:
            arrays |= {f"{kind}/{layer.name}": layer.images, f"order/{kind}/{layer.name}": layer.order}
    for kind, layer in weights.initial.items():
        arrays[f"initial/{kind}/{layer.name}"] = layer.images
        arrays[f"order/initial/{kind}/{layer.name}"] = layer.order
    if weights.stem is not None:
        arrays["stem"] = weights.stem
    atomic_write(path, lambda file: np.savez_compressed(file, **arrays))


def load(path: Path) -> Weights:
    """What `save` wrote."""
    with np.load(path, allow_pickle=False) as content:
        arrays = {name: content[name] for name in content.files}

    def layer(key: str) -> Layer:
        return Layer(key.rpartition("/")[2], arrays[key], arrays[f"order/{key}"])

    return Weights(
        name=str(arrays["name"]),
        model=str(arrays["model"]),
        layers={
            kind: [layer(key) for key in arrays if key.startswith(f"{kind}/")]
            for kind in (TOKEN_MIXING, DEPTHWISE)
            if any(key.startswith(f"{kind}/") for key in arrays)
        },
        initial={key.split("/")[1]: layer(key) for key in arrays if key.startswith("initial/")},
        stem=arrays.get("stem"),
    )


# ------------------------------------------------------------------------------------------------ pictures


class _Panel(NamedTuple):
    title: str
    pixels: NDArray[np.uint8]  # [H, W, 3]


def draw(stem: Path, checkpoints: Sequence[Weights]) -> list[Path]:
    """The pictures for which there is something to draw."""
    drawn = []
    for kind, word in WORDS.items():
        if any(kind in weights.layers for weights in checkpoints):
            drawn.append(Path(f"{stem}_{word}.png"))
            draw_units(drawn[-1], checkpoints, kind)
    if any(weights.stem is not None for weights in checkpoints):
        drawn.append(Path(f"{stem}_stem.png"))
        draw_stems(drawn[-1], checkpoints)
    return drawn


def draw_units(path: Path, checkpoints: Sequence[Weights], kind: str) -> None:
    """A PNG of the units of one kind of layer: a row of panels for each checkpoint, one colour scale in each row."""
    rows = []
    for weights in checkpoints:
        layers = weights.layers.get(kind, [])
        if not layers:
            continue
        initial = [weights.initial[kind]] if kind in weights.initial else []
        limit = colour_limit(layers)
        titles = [layer.name for layer in layers] + [f"{layer.name} {INITIAL}" for layer in initial]
        panels = [
            _Panel(title, coloured(mosaic(layer.shown, per_row=_per_row(len(layer.images), 2)), limit))
            for title, layer in zip(titles, [*layers, *initial], strict=True)
        ]
        scale = f"blue {-limit:.3g}, white 0, red {limit:.3g}; darkest beyond"
        rows.append((f"{weights.name} ({weights.model}): {scale}", panels))
    _draw(path, [TITLES[kind], *HEURISTIC], rows)


def draw_stems(path: Path, checkpoints: Sequence[Weights]) -> None:
    """A PNG of the stems' kernels in colour, as the file orders them, each checkpoint a row."""
    rows = []
    for weights in checkpoints:
        if weights.stem is not None:
            kernels = as_colours(weights.stem)
            cells = mosaic(kernels, per_row=_per_row(len(kernels), 1))
            pixels = np.where(np.isnan(cells), PAPER, np.round(255 * cells)).astype(np.uint8)
            size = "x".join(map(str, weights.stem.shape[1:]))
            title = f"{len(kernels):,} kernels of {size}"
            rows.append((f"{weights.name} ({weights.model})", [_Panel(title, pixels)]))
    about = "Red, green and blue weights as the colour; 0 is grey, and each kernel is scaled by its own largest weight."
    _draw(path, ["Kernels of the stem, which see the image", about], rows)


def colour_limit(layers: Sequence[Layer]) -> float:
    """The end of the colour scale of some layers: all but CLIPPED of the weights that are not 0 lie within."""
    sizes = np.concatenate([np.abs(layer.images[layer.images != 0]) for layer in layers])
    return float(np.quantile(sizes, 1 - CLIPPED)) if sizes.size else 1.0


def coloured(values: NDArray[np.float32], limit: float) -> NDArray[np.uint8]:
    """Weights [H, W] from -limit to limit as blue over white to red [H, W, 3]; NaN as paper."""
    shade = matplotlib.colormaps[COLOURS](np.nan_to_num(values / limit, nan=0.0) / 2 + 0.5, bytes=True)
    return np.where(np.isnan(values)[..., None], PAPER, shade[..., :3]).astype(np.uint8)


def as_colours(kernels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Kernels [C, P, P, 3] as colours from 0 to 1: 0.5 is a weight of 0, the largest of a kernel is at 0 or 1.

    Kernels of one channel [C, P, P, 1] become grey.
    """
    largest = np.abs(kernels).max(axis=(1, 2, 3), keepdims=True)
    colours = 0.5 + 0.5 * kernels / np.where(largest == 0, 1, largest)
    return np.broadcast_to(colours, (*colours.shape[:3], 3)).astype(np.float32)


def mosaic(images: NDArray[np.float32], *, per_row: int) -> NDArray[np.float32]:
    """Images [N, h, w, ...] row by row on one sheet, a NaN line between neighbours: [H, W, ...]."""
    count, height, width, *rest = images.shape
    rows = math.ceil(count / per_row)
    sheet = np.full((rows * (height + 1) - 1, per_row * (width + 1) - 1, *rest), np.nan, np.float32)
    for index, image in enumerate(images):
        top, left = (height + 1) * (index // per_row), (width + 1) * (index % per_row)
        sheet[top : top + height, left : left + width] = image
    return sheet


def _per_row(count: int, multiple: int) -> int:
    """Images side by side on a sheet that is a little wider than it is high: a multiple, so that no pair is torn."""
    wanted = math.ceil(math.sqrt(count * WIDEST / 2) / multiple) * multiple
    return max(multiple, min(wanted, math.ceil(count / multiple) * multiple))


def _draw(path: Path, head: Sequence[str], rows: Sequence[tuple[str, Sequence[_Panel]]]) -> None:
    """Panels, up to PANELS side by side, whose every cell is a square of whole pixels."""
    lines = [
        (title, panels[at : at + PANELS]) for title, panels in rows for at in range(0, len(panels), PANELS)
    ]
    enlarged = [(title, [_enlarged(panel) for panel in panels]) for title, panels in lines]
    widths = [sum(panel.pixels.shape[1] + MARGIN for panel in panels) + MARGIN for _, panels in enlarged]
    heights = [max(panel.pixels.shape[0] for panel in panels) + 2 * TITLE + MARGIN for _, panels in enlarged]
    text = max(7 * max(map(len, [*head, *(title for title, _ in lines)])), 0) + 2 * MARGIN
    width, height = max([text, *widths]), sum(heights) + LINE * len(head) + 2 * MARGIN
    figure = new_figure(width / DPI, height / DPI)
    figure.set_layout_engine("none")

    def write(left: float, top: float, said: str, size: float, weight: str = "normal") -> None:
        figure.text(left / width, 1 - top / height, label(said), fontsize=size, va="top", fontweight=weight)

    top = MARGIN
    for number, said in enumerate(head):
        write(MARGIN, top, said, 9 if number else 10.5, "normal" if number else "bold")
        top += LINE
    top += MARGIN // 2
    for (title, panels), line_height in zip(enlarged, heights, strict=True):
        write(MARGIN, top, title, 9)
        left = MARGIN
        for panel in panels:
            rows_, columns = panel.pixels.shape[:2]
            write(left, top + TITLE, panel.title, 8)
            place = (
                left / width,
                1 - (top + 2 * TITLE - 4 + rows_) / height,
                columns / width,
                rows_ / height,
            )
            axes = figure.add_axes(place)
            axes.imshow(panel.pixels, interpolation="nearest", aspect="auto")
            axes.set_axis_off()
            left += columns + MARGIN
        top += line_height
    save_figure(figure, path)


def _enlarged(panel: _Panel) -> _Panel:
    """Every pixel as a square, so that the panel is at least PANEL pixels wide."""
    times = max(1, math.ceil(PANEL / panel.pixels.shape[1]))
    return _Panel(panel.title, panel.pixels.repeat(times, axis=0).repeat(times, axis=1))
