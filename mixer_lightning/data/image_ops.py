"""Operations on uint8 image batches, wherever the batch is; the pixels come out as Pillow's, or as big_vision's.

This says what they mean, and a GPU does them so; on a CPU data/operations.py takes native code. Images with the same
kind of operation go through it together: a look-up table per channel, a blend, or an affine resampling.

Legend: B images of a batch, G of them with one kind of operation, S side in pixels, N operations in a row.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from mixer_lightning.data import tensorflow_ops

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

#: Bytes of images that go through an operation together; its float32 values use many times that.
BYTES_PER_CALL = 2**21
#: Grey levels. In float32 a mean of equal levels may fall a little below them, and is rounded down next.
ROUNDING_MARGIN = 2.0**-11
#: Pixels along an axis that an interpolation looks at.
TAPS = {"nearest": 1, "bilinear": 2, "bicubic": 4}


class Operation(IntEnum):
    """An operation on an image; most have one argument."""

    IDENTITY = 0
    # a table per channel
    INVERT = 1
    POSTERIZE = 2  # bits kept
    SOLARIZE = 3  # lowest level that is inverted
    SOLARIZE_ADD = 4  # levels added below 128
    BRIGHTNESS = 5  # factor
    CONTRAST = 6  # factor
    AUTOCONTRAST = 7
    EQUALIZE = 8
    TF_CONTRAST = 9  # factor
    TF_AUTOCONTRAST = 10
    # from several channels or pixels
    COLOR = 11  # factor
    SHARPNESS = 12  # factor
    BLUR = 13  # standard deviation in pixels
    TF_COLOR = 14  # factor
    TF_SHARPNESS = 15  # factor
    CUTOUT = 16  # half the side of a square, in pixels
    # affine: the source of a pixel is at
    SHEAR_X = 17  # x + argument * y
    SHEAR_Y = 18  # y + argument * x
    TRANSLATE_X = 19  # x + argument * S
    TRANSLATE_Y = 20  # y + argument * S
    SHIFT_X = 21  # x + argument * S, a whole number of pixels
    SHIFT_Y = 22  # y + argument * S, a whole number of pixels
    ROTATE = 23  # degrees, counterclockwise
    # the same of big_vision: the nearest pixel, counted from the first
    TF_SHEAR_X = 24  # x + argument * y
    TF_SHEAR_Y = 25  # y + argument * x
    TF_TRANSLATE_X = 26  # x + argument
    TF_TRANSLATE_Y = 27  # y + argument
    TF_ROTATE = 28  # degrees, counterclockwise
    FLIP = 29  # left to right


_TABLES = (*range(Operation.INVERT, Operation.TF_AUTOCONTRAST + 1),)
_AFFINE = (*range(Operation.SHEAR_X, Operation.ROTATE + 1),)
_TF_AFFINE = (*range(Operation.TF_SHEAR_X, Operation.TF_ROTATE + 1),)
_ALONG_X = (Operation.SHEAR_X, Operation.TRANSLATE_X, Operation.SHIFT_X, Operation.ROTATE)
_ALONG_Y = (Operation.SHEAR_Y, Operation.TRANSLATE_Y, Operation.SHIFT_Y, Operation.ROTATE)

#: The operation that stands for all that go through the same kernels.
_KIND = np.arange(len(Operation))
_KIND[[*_TABLES]] = Operation.INVERT
_KIND[[*_AFFINE]] = Operation.ROTATE
_KIND[[*_TF_AFFINE]] = Operation.TF_ROTATE


def apply_operations(
    images: Tensor,
    operations: Integers,
    arguments: Floats,
    taps: Integers,
    *,
    fill: npt.NDArray[np.uint8],
    centres: Floats | None = None,
) -> Tensor:
    """Apply its operations [B, N], in this order, to each of the images uint8 [B, 3, S, S].

    taps [B, N] of affine operations, one of TAPS; `fill` [3]: the colour of what moves in from outside, and of CUTOUT,
    whose `centres` [B, N, 2] are line and column as shares of S. Between operations the images are sorted by kind, so
    that each kind is one call.
    """
    images = images.contiguous()
    places = np.arange(len(images))  # of the original images among the sorted ones
    for n, (done, argument, tap) in enumerate(zip(operations.T, arguments.T, taps.T, strict=True)):
        across = np.where(np.isin(done, _ALONG_X), tap, 1)
        down = np.where(np.isin(done, _ALONG_Y), tap, 1)
        groups = 64 * _KIND[done] + 8 * across + down
        order = np.lexsort((done, groups))
        images = images.index_select(0, _to_device(places[order], images.device))
        places[order] = np.arange(len(order))
        for start, stop in _runs(
            groups[order], max_length=max(1, BYTES_PER_CALL // images.shape[1:].numel())
        ):
            these = order[start:stop]
            if done[these[0]] == Operation.IDENTITY:
                continue
            images[start:stop] = _apply_kind(
                images[start:stop],
                done[these],
                argument[these],
                across=int(across[these[0]]),
                down=int(down[these[0]]),
                fill=fill,
                centres=None if centres is None else centres[these, n],
            )
    return images.index_select(0, _to_device(places, images.device))


def _runs(groups: Integers, *, max_length: int) -> Iterator[tuple[int, int]]:
    """Where runs of equal numbers start and stop, none longer than `max_length`."""
    bounds = np.flatnonzero(np.diff(groups, prepend=-1, append=-1)).tolist()
    for start, stop in itertools.pairwise(bounds):
        for first in range(start, stop, max_length):
            yield first, min(first + max_length, stop)


def _apply_kind(
    images: Tensor,
    operations: Integers,
    arguments: Floats,
    *,
    across: int,
    down: int,
    fill: npt.NDArray[np.uint8],
    centres: Floats | None,
) -> Tensor:
    """Images [G, 3, S, S] through operations [G] of one kind."""
    side, colour = images.shape[-1], _to_device(fill, images.device)
    match operations[0]:
        case Operation.COLOR:
            pixels = images.float()
            return _blend(_grey(pixels), pixels, arguments)
        case Operation.SHARPNESS:
            return _blend(_smooth(images), images.float(), arguments)
        case Operation.BLUR:
            return _blur(images, arguments)
        case Operation.TF_COLOR:
            pixels = images.float()
            return _blend(tensorflow_ops.grey(pixels), pixels, arguments)
        case Operation.TF_SHARPNESS:
            return _blend(tensorflow_ops.smooth(images), images.float(), arguments)
        case Operation.FLIP:
            return images.flip(-1)
        case Operation.CUTOUT:
            assert centres is not None
            edges = tensorflow_ops.square_edges(centres, arguments, side)
            return _within(images, tensorflow_ops.outside(_to_device(edges, images.device), side), colour)
        case operation if operation < Operation.COLOR:
            return _look_up(images, operations, arguments)
    sources = matrices(operations, arguments, side)
    if operations[0] in _TF_AFFINE:
        line, column = tensorflow_ops.nearest(_to_device(sources.astype(np.float32), images.device), side)
        return _moved(images, line, column, colour)
    if across == down == 1:
        return _nearest(images, sources, colour)
    return _interpolated(images, sources, colour, across=across, down=down)


def _to_device(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """A copy that the CPU does not wait for."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


# ---- tables


def _look_up(images: Tensor, operations: Integers, arguments: Floats) -> Tensor:
    """Every value through the table of its image and channel; operations in ascending order."""
    tables = _to_device(_fixed_tables(operations, arguments), images.device)[:, None].repeat(1, 3, 1)
    for operation, from_image in (
        (Operation.CONTRAST, _contrast_tables),
        (Operation.AUTOCONTRAST, _autocontrast_tables),
        (Operation.EQUALIZE, _equalize_tables),
        (Operation.TF_CONTRAST, _tf_contrast_tables),
        (Operation.TF_AUTOCONTRAST, lambda images, _: tensorflow_ops.autocontrast_tables(images)),
    ):
        start, stop = np.searchsorted(operations, [operation, operation + 1]).tolist()
        if start < stop:
            tables[start:stop] = from_image(images[start:stop], arguments[start:stop])
    return tables.gather(2, images.flatten(2).long()).view_as(images)


def _fixed_tables(operations: Integers, arguments: Floats) -> npt.NDArray[np.uint8]:
    """Tables that depend on no image, [G, 256]."""
    levels = np.arange(256)
    tables = np.tile(levels, (len(operations), 1))
    tables[operations == Operation.INVERT] = 255 - levels
    these = operations == Operation.POSTERIZE
    lost = 8 - np.clip(arguments[these], 0, 8).astype(np.int64)[:, None]
    tables[these] = levels >> lost << lost
    these = operations == Operation.SOLARIZE
    tables[these] = np.where(levels < arguments[these][:, None], levels, 255 - levels)
    these = operations == Operation.SOLARIZE_ADD
    added = np.minimum(255, levels + arguments[these][:, None].astype(np.int64))
    tables[these] = np.where(levels < 128, added, levels)
    these = operations == Operation.BRIGHTNESS
    tables[these] = np.minimum(255, arguments[these][:, None].astype(np.float32) * levels.astype(np.float32))
    return tables.astype(np.uint8)


def _contrast_tables(images: Tensor, factors: Floats) -> Tensor:
    """Away from the image's mean grey level, [G, 1, 256]."""
    grey = _grey(images.float()).flatten(1)  # [G, S * S]
    size = grey.shape[1]
    mean = (2 * grey.sum(1, dtype=torch.int64) + size) // (2 * size)  # rounded, halves up
    levels = torch.arange(256, device=images.device, dtype=torch.float32)
    return _blend(mean.float()[:, None, None, None], levels, factors)[:, 0]


def _tf_contrast_tables(images: Tensor, factors: Floats) -> Tensor:
    """Away from one level, which depends on the size alone, [G, 1, 256]."""
    level = tensorflow_ops.contrast_level(images[0, 0].numel())
    start = torch.full((len(images), 1, 1, 1), level, device=images.device)
    levels = torch.arange(256, device=images.device, dtype=torch.float32)
    return _blend(start, levels, factors)[:, 0]


def _autocontrast_tables(images: Tensor, _: Floats) -> Tensor:
    """The darkest level of a channel to 0 and its brightest to 255, [G, 3, 256]."""
    low, high = (find(images.flatten(2), -1, keepdim=True).double() for find in (torch.amin, torch.amax))
    levels = torch.arange(256, device=images.device, dtype=torch.float64)
    scale = levels[-1:] / (high - low).clamp_(min=1)  # a plain 255 would be multiplied by the inverse
    stretched = (levels * scale + -low * scale).clamp_(0, 255)
    return torch.where(high > low, stretched, levels).to(torch.uint8)


def _equalize_tables(images: Tensor, _: Floats) -> Tensor:
    """About as many pixels of a channel at every level, [G, 3, 256]."""
    pixels = images.flatten(2).long()  # [G, 3, S * S]
    levels = torch.arange(256, device=pixels.device)
    one = torch.ones((), dtype=torch.int64, device=pixels.device).expand_as(pixels)
    counts = pixels.new_zeros((*pixels.shape[:2], 256)).scatter_add_(2, pixels, one)
    brightest = ((counts > 0) * levels).amax(-1, keepdim=True)
    step = (pixels.shape[-1] - counts.gather(-1, brightest)) // 255
    below = counts.cumsum(-1) - counts
    equal = (step // 2 + below) // step.clamp(min=1)
    return torch.where(step > 0, equal.clamp_(max=255), levels).to(torch.uint8)


# ---- blends


def _blend(start: Tensor, pixels: Tensor, factors: Floats) -> Tensor:
    """start + factor * (pixels - start), rounded down: float32 to uint8 [G, ...]; in Pillow's order of rounding."""
    factor = _to_device(factors.astype(np.float32), start.device)[:, None, None, None]
    return (pixels - start).mul_(factor).add_(start).clamp_(0, 255).to(torch.uint8)


def _grey(pixels: Tensor) -> Tensor:
    """Pillow's luma in whole levels, float32 [G, 1, S, S]. The sum stays below 2^24, hence exact."""
    grey = 19595 * pixels[:, :1] + 38470 * pixels[:, 1:2] + 7471 * pixels[:, 2:]
    return grey.add_(32768).div_(65536).floor_()


def _smooth(images: Tensor) -> Tensor:
    """Mean of 3 x 3 pixels, the middle one five times; the border stays; float32 [G, 3, S, S]."""
    x = images.float()
    rows = x[..., :-2] + x[..., 1:-1] + x[..., 2:]
    total = rows[..., :-2, :] + rows[..., 1:-1, :] + rows[..., 2:, :]
    x[..., 1:-1, 1:-1] = total.add_(x[..., 1:-1, 1:-1], alpha=4).div_(13).add_(0.5).floor_()
    return x


def _blur(images: Tensor, deviations: Floats) -> Tensor:
    """Pillow's GaussianBlur: three box blurs in a row and three in a column, each rounded to whole levels.

    A box of radius r + a holds 2 r + 1 whole pixels and the share a of one more on each side; r and a are equations 11
    and 14 of Gwosdek et al., "Theoretical foundations of Gaussian convolution by extended box filtering" (SSVM 2011).
    """
    variance = (deviations.astype(np.float32) ** 2 / 3).astype(np.float32)
    whole = np.floor((np.sqrt(12.0 * variance + 1.0) - 1) / 2)
    share = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    radius = (whole + share).astype(np.float32)
    weight = (2.0**24 / (radius * 2 + 1)).astype(np.int64)  # of a pixel, in 2^-24
    rest = (2**24 - (2 * np.floor(radius).astype(np.int64) + 1) * weight) // 2  # of the one beyond
    reach = int(np.floor(radius).max(initial=0)) + 1
    distance = np.abs(np.arange(-reach, reach + 1))[:, None]  # [T, 1]
    weights = np.where(distance <= np.floor(radius), weight, rest * (distance == np.floor(radius) + 1))
    taps = _to_device(weights / 2**24, images.device)[..., None, None, None]  # [T, G, 1, 1, 1]
    x = images.double()  # in which the sums are exact
    for axis in (-1, -1, -1, -2, -2, -2):
        side = x.shape[axis]
        border = (reach, reach, 0, 0) if axis == -1 else (0, 0, reach, reach)
        near = F.pad(x, border, mode="replicate")
        x = torch.full_like(x, 0.5)
        for i, tap in enumerate(taps):
            x.addcmul_(near.narrow(axis, i, side), tap)
        x.floor_()
    return x.to(torch.uint8)


# ---- affine


def matrices(operations: Integers, arguments: Floats, side: int) -> Floats:
    """Source positions of pixels: rows a, b, c, d, e, f of x' = a x + b y + c, y' = d x + e y + f, [G, 6]."""
    rows = np.tile([1.0, 0.0, 0.0, 0.0, 1.0, 0.0], (len(operations), 1))
    for operation, column, values in (
        (Operation.SHEAR_X, 1, arguments),
        (Operation.SHEAR_Y, 3, arguments),
        (Operation.TRANSLATE_X, 2, arguments * side),
        (Operation.TRANSLATE_Y, 5, arguments * side),
        (Operation.SHIFT_X, 2, np.trunc(arguments * side)),
        (Operation.SHIFT_Y, 5, np.trunc(arguments * side)),
        (Operation.TF_SHEAR_X, 1, arguments),
        (Operation.TF_SHEAR_Y, 3, arguments),
        (Operation.TF_TRANSLATE_X, 2, arguments),
        (Operation.TF_TRANSLATE_Y, 5, arguments),
    ):
        these = operations == operation
        rows[these, column] = values[these]
    these = operations == Operation.TF_ROTATE
    rows[these] = tensorflow_ops.rotations(arguments[these], side)
    these = operations == Operation.ROTATE
    radians = -np.radians(arguments[these] % 360.0)
    cos, sin, centre = np.round(np.cos(radians), 15), np.round(np.sin(radians), 15), side / 2
    c, f = cos * -centre + sin * -centre + centre, -sin * -centre + cos * -centre + centre
    rows[these] = np.stack([cos, sin, c, -sin, cos, f], axis=1)
    return rows


def _nearest(images: Tensor, matrices: Floats, fill: Tensor) -> Tensor:
    """Nearest neighbour: the pixel at the source position; in Pillow's fixed point, 16 bits before and after."""
    side = images.shape[-1]
    fixed = matrices.copy()
    fixed[:, [2, 5]] += matrices[:, [0, 3]] * 0.5 + matrices[:, [1, 4]] * 0.5  # from centres of pixels
    fixed = np.floor(fixed * 65536 + 0.5).astype(np.int32)
    a, b, c, d, e, f = _to_device(fixed, images.device).T[..., None, None]  # each [G, 1, 1]
    h = torch.arange(side, device=images.device, dtype=torch.int32)[None, None]  # [1, 1, S]
    x, y = ((p * h + r + q * h.mT) >> 16 for p, q, r in ((a, b, c), (d, e, f)))  # [G, S, S]
    return _moved(images, y, x, fill)


def _moved(images: Tensor, line: Tensor, column: Tensor, fill: Tensor) -> Tensor:
    """The pixels of images at lines and columns int32 [G, S, S], `fill` where those lie outside."""
    near_line, near_column = (place.clamp(0, images.shape[-1] - 1) for place in (line, column))
    inside = (near_column == column) & (near_line == line)
    return _within(_at(images, near_line, near_column), inside, fill)


def _interpolated(images: Tensor, matrices: Floats, fill: Tensor, *, across: int, down: int) -> Tensor:
    """A weighted mean of `across` x `down` pixels around the source position; edges are repeated.

    1 stands for an axis along which nothing moves.
    """
    side = images.shape[-1]
    a, b, c, d, e, f = _to_device(matrices, images.device).T[..., None, None]  # each [G, 1, 1]
    h = torch.arange(side, device=images.device, dtype=torch.float64)[None, None] + 0.5  # [1, 1, S], centres
    v = h.mT
    columns, column_weights, inside_x = _sources(a * h + c + b * v if across > 1 else h, across, side)
    lines, line_weights, inside_y = _sources(d * h + f + e * v if down > 1 else v, down, side)
    rows = []
    for i in range(down):
        pixels = _at(images, lines[:, i : i + 1], columns).float()  # [G, 3, across, S, S]
        rows.append(_weighted(pixels.unbind(2), column_weights))
    value = _weighted(rows, line_weights).add_(ROUNDING_MARGIN).clamp_(0, 255)
    return _within(value.to(torch.uint8), inside_x & inside_y, fill)


def _sources(position: Tensor, taps: int, side: int) -> tuple[Tensor, list[Tensor], Tensor]:
    """Around positions float64 [G, S, S]: pixels int32 [G, taps, S, S], their weights, and what is inside."""
    first = (position - 0.5).floor_()
    beyond = (position - 0.5 - first).float()[:, None]
    offsets = torch.arange(taps, device=position.device, dtype=torch.int32)[:, None, None] - (taps - 1) // 2
    pixels = (first.int()[:, None] + offsets).clamp_(0, side - 1)
    return pixels, _weights(beyond, taps), (position >= 0) & (position < side)


def _weights(d: Tensor, taps: int) -> list[Tensor]:
    """Weights of 1, 2 (linear) or 4 (cubic with slope -1; Keys 1981, a = -1) pixels at distance d behind the middle."""
    if taps == 1:
        return [torch.ones_like(d)]
    if taps == 2:
        return [1 - d, d]
    far = 1 - d
    return [-d * far * far, 1 + d * d * (d - 2), d * (1 + d * far), -d * d * far]


def _weighted(values: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    total = values[0] * weights[0]
    for value, weight in zip(values[1:], weights[1:], strict=True):
        total.addcmul_(value, weight)
    return total


def _at(images: Tensor, lines: Tensor, columns: Tensor) -> Tensor:
    """Pixels at lines and columns [G, ..., S, S] (int32) of images [G, 3, S, S]: uint8 [G, 3, ..., S, S]."""
    places = lines * images.shape[-1] + columns
    index = places.flatten(1).long()[:, None].expand(-1, 3, -1)
    return images.flatten(2).gather(2, index).view(-1, 3, *places.shape[1:])


def _within(images: Tensor, inside: Tensor, fill: Tensor) -> Tensor:
    """Images where `inside` [G, S, S], else the colour `fill` [3]; products, since torch.where is slow on a CPU."""
    inside = inside[:, None]
    return images.mul_(inside).add_(fill[:, None, None] * ~inside)
