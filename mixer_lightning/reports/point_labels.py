"""Names beside the points of a scatter plot that touch neither each other nor a point, as far as there is room."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes

#: Where a name is tried around its point: how far, in pixels, and in which direction, the nearest and rightmost first.
RADII = (5, 10, 18, 28, 40, 54, 70)
DIRECTIONS = (
    (1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0),
    (0.5, 1), (-0.5, 1), (0.5, -1), (-0.5, -1), (1, 0.5), (1, -0.5), (-1, 0.5), (-1, -0.5),
)  # fmt: skip
MARKER = 4  # pixels from the middle of a point to its edge
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
    points: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], within: Box
) -> list[Place]:
    """A place for each name of some size (width, height) beside its point; where there is no room, the nearest."""
    taken = [Box(x - MARKER, y - MARKER, x + MARKER, y + MARKER) for x, y in points]
    places = []
    for (x, y), (width, height) in zip(points, sizes, strict=True):
        tried = [
            Place(_beside(x, y, width, height, radius, across, up), radius)
            for radius, (across, up) in itertools.product(RADII, DIRECTIONS)
        ]
        found = next(
            (each for each in tried if _inside(each.box, within) and not any(map(each.box.touches, taken))),
            tried[0],
        )
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
