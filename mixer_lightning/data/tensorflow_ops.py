"""The operations of big_vision's RandAugment that differ from Pillow's, on uint8 batches.

Source: google-research/big_vision, pp/archive/autoaugment.py, with the kernels of TensorFlow and TensorFlow Addons that
it calls. What it casts to uint8 is rounded down, and its geometry takes the nearest pixel.

Legend: G images of a batch, S side in pixels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float64]
Float32s = npt.NDArray[np.float32]


def grey(pixels: Tensor) -> Tensor:
    """tf.image.rgb_to_grayscale of whole levels: float32 [G, 3, S, S] to whole levels [G, 1, S, S].

    It weighs shares of 255 and takes 255.5 times the sum.
    """
    shares = pixels * (1 / 255)
    luma = 0.2989 * shares[:, :1] + 0.5870 * shares[:, 1:2] + 0.1140 * shares[:, 2:]
    return luma.mul_(255.5).floor_()


def smooth(images: Tensor) -> Tensor:
    """Mean of 3 x 3 pixels, the middle one five times, rounded down; the border stays; float32 [G, 3, S, S]."""
    x = images.float()
    rows = x[..., :-2] + x[..., 1:-1] + x[..., 2:]
    total = rows[..., :-2, :] + rows[..., 1:-1, :] + rows[..., 2:, :]
    x[..., 1:-1, 1:-1] = total.add_(x[..., 1:-1, 1:-1], alpha=4).add_(0.5).div_(13).floor_()
    return x


def autocontrast_tables(images: Tensor) -> Tensor:
    """The darkest level of a channel to 0 and its brightest to 255, in float32, [G, 3, 256]."""
    low, high = (find(images.flatten(2), -1, keepdim=True).float() for find in (torch.amin, torch.amax))
    levels = torch.arange(256, device=images.device, dtype=torch.float32)
    scale = levels[-1:] / (high - low).clamp_(min=1)  # a plain 255 would be multiplied by the inverse
    stretched = (levels * scale + -low * scale).clamp_(0, 255)
    return torch.where(high > low, stretched, levels).to(torch.uint8)


def contrast_level(num_pixels: int) -> float:
    """The level that Contrast blends with: how many pixels a bin of 256 has on average, not their mean level."""
    return float(min(num_pixels // 256, 255))


def rotations(degrees: Floats, side: int) -> Float32s:
    """Source positions of pixels, counted from the first: a, b, c, d, e, f of x' = a x + b y + c, y' = d x + e y + f.

    In float32, [G, 6]; about the middle, (S - 1) / 2, counterclockwise.
    """
    radians = degrees.astype(np.float32) * np.float32(np.pi / 180)
    cos, sin, last = np.cos(radians), np.sin(radians), np.float32(side - 1)
    x, y = (last - (cos * last - sin * last)) / 2, (last - (sin * last + cos * last)) / 2
    return np.stack([cos, -sin, x, sin, cos, y], axis=1)


def nearest(matrices: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Lines and columns int32 [G, S, S] of the nearest pixels for `rotations` and the like [G, 6], halves away from 0.

    They may lie outside.
    """
    a, b, c, d, e, f = matrices.T[..., None, None]  # each [G, 1, 1]
    h = torch.arange(side, device=matrices.device, dtype=torch.float32)[None, None]  # [1, 1, S]
    column, line = (p * h + q * h.mT + r for p, q, r in ((a, b, c), (d, e, f)))
    return _rounded(line), _rounded(column)


def _rounded(x: Tensor) -> Tensor:
    return torch.where(x < 0, -(0.5 - x).floor(), (x + 0.5).floor()).int()


def square_edges(centres: Floats, halves: Floats, side: int) -> Floats:
    """Top, bottom, left and right of squares 2 `halves` [G] pixels long, [4, G]; they may reach beyond the image.

    centres [G, 2] are line and column as shares of the side, rounded down to a pixel.
    """
    line, column = np.floor(centres * side).T
    return np.stack([line - halves, line + halves, column - halves, column + halves])


def outside(edges: Tensor, side: int) -> Tensor:
    """Which pixels lie outside boxes [4, G] (top, bottom, left, right): bool [G, S, S]."""
    top, bottom, left, right = edges[..., None, None]
    h = torch.arange(side, device=edges.device)
    inside: Tensor = (h[:, None] >= top) & (h[:, None] < bottom) & (h >= left) & (h < right)
    return ~inside
