"""Names beside the points of a scatter plot that touch neither each other nor a point, as far as there is room."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

#: Where a name is tried around its point: how far, in pixels, and in which direction, the nearest and rightmost first.
RADII = (5, 10, 18, 28, 40, 54, 70)
DIRECTIONS = (
    (1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0),
    (0.5, 1), (-0.5, 1), (0.5, -1), (-0.5, -1), (1, 0.5), (1, -0.5), (-1, 0.5), (-1, -0.5),
)  # fmt: skip
MARKER = 4  # pixels from the middle of a point to its edge
STEP = 4  # pixels, at most, between two places that stand for a line
FAR = 12  # pixels from which on a line leads from the name to its point


class Box(NamedTuple):
    """A rectangle, in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    def touches(self, other: Box) -> bool:
        """Whether they have more than an edge in common."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.bottom < other.top
            and other.bottom < self.top
        )


class Place(NamedTuple):
    """Where a name stands, and how far from its point."""

    box: Box
    radius: float


def place(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    within: Box,
    lines: Sequence[tuple[float, float]] = (),
) -> list[Place]:
    """A place for each name of some size (width, height) beside its point; where there is no room, the nearest.

    Names keep off the points that `lines` are drawn through where they can do so and touch nothing else.
    """
    drawn = [Box(x - 1, y - 1, x + 1, y + 1) for x, y in lines]
    taken = [Box(x - MARKER, y - MARKER, x + MARKER, y + MARKER) for x, y in points]
    places = []
    for (x, y), (width, height) in zip(points, sizes, strict=True):
        tried = [
            Place(_beside(x, y, width, height, radius, across, up), radius)
            for radius, (across, up) in itertools.product(RADII, DIRECTIONS)
        ]
        free = [each for each in tried if _inside(each.box, within) and not any(map(each.box.touches, taken))]
        clear = (each for each in free if not any(map(each.box.touches, drawn)))
        found = next(clear, free[0] if free else tried[0])
        places.append(found)
        taken.append(found.box)
    return places


def _beside(x: float, y: float, width: float, height: float, radius: float, across: float, up: float) -> Box:
    left = x + across * radius + width * (across - 1) / 2
    bottom = y + up * radius + height * (up - 1) / 2
    return Box(left, bottom, left + width, bottom + height)


def _inside(box: Box, within: Box) -> bool:
    return (
        within.left <= box.left
        and within.bottom <= box.bottom
        and box.right <= within.right
        and box.top <= within.top
    )


def name_points(axes: Axes, points: Sequence[tuple[float, float, str]], *, fontsize: float) -> None:
    """Write the names of points (x, y, name) beside them. The figure must have been laid out before."""
    if not points:
        return
    texts = [axes.text(0, 0, name, fontsize=fontsize) for _, _, name in points]
    extents = [text.get_window_extent() for text in texts]
    for text in texts:
        text.remove()
    pixels = [tuple(map(float, axes.transData.transform((x, y)))) for x, y, _ in points]
    places = place(
        [(x, y) for x, y in pixels],
        [(extent.width + 2, extent.height) for extent in extents],
        Box(*map(float, axes.bbox.extents)),
        [place for line in axes.lines for place in _along(line)],
    )
    points_per_pixel = 72 / axes.get_figure(root=True).dpi  # type: ignore[union-attr]
    for (x, y, name), (left, bottom), found in zip(points, pixels, places, strict=True):
        axes.annotate(
            name,
            (x, y),
            xytext=(
                (found.box.left - left) * points_per_pixel,
                (found.box.bottom - bottom) * points_per_pixel,
            ),
            textcoords="offset points",
            fontsize=fontsize,
            color="0.3",
            arrowprops={"arrowstyle": "-", "color": "0.7", "linewidth": 0.5} if found.radius > FAR else None,
        )


def _along(line: Line2D) -> list[tuple[float, float]]:
    """Places on a line, in pixels, no farther apart than a few of them."""
    corners = line.get_transform().transform(line.get_xydata())
    places: list[tuple[float, float]] = []
    for (x0, y0), (x1, y1) in itertools.pairwise(corners.tolist()):
        steps = max(1, math.ceil(math.dist((x0, y0), (x1, y1)) / STEP))
        places += [(x0 + (x1 - x0) * i / steps, y0 + (y1 - y0) * i / steps) for i in range(steps + 1)]
    return places
