"""Which part of an image the model sees, at which size: chosen for a batch, applied to one image or to a batch.

Legend: B images, H x W pixels of an image, S side of the model's input in pixels.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

Integers = npt.NDArray[np.int64]

Filter = Literal["bilinear", "bicubic", "area", "tf_bilinear"]
FILTERS: tuple[Filter, ...] = get_args(Filter)
#: Those of tf.image.resize: computed in floating point throughout, then rounded down, as by tf.cast.
TENSORFLOW = (FILTERS.index("area"), FILTERS.index("tf_bilinear"))
#: Grey levels. In float32 a mean of equal levels may fall a little below them, and is rounded down next.
ROUNDING_MARGIN = 2.0**-11
#: Of a box that would become larger, such as an image of 20,000 x 1 pixels, only what is seen is resized.
MAX_RESIZED_PIXELS = 2**24
MAX_FLOAT32_EXTENT = 2**16  # positions in longer rows need float64


@dataclass(frozen=True, kw_only=True)
class Crops:
    """One crop for each of B images; every field is [B].

    The box (left, top, width, height) of the image is resized to (to_width, to_height) by `filter`, an index into
    FILTERS; the crop is the S x S window of that whose upper left corner is (x, y), black outside.

    "bilinear" and "bicubic" are antialiased, with Pillow's weights and its rounding to whole grey levels after either
    axis. "area" is the mean of the pixels that an output pixel covers, weighted by how much of each it covers, and
    "tf_bilinear" looks at the two nearest pixels along an axis, however much smaller the image becomes: those of
    tf.image.resize (ResizeArea; ResizeBilinear with half_pixel_centers).
    """

    left: Integers
    top: Integers
    width: Integers
    height: Integers
    to_width: Integers
    to_height: Integers
    x: Integers
    y: Integers
    filter: Integers

    def __len__(self) -> int:
        return len(self.left)

    def __getitem__(self, which: slice) -> Crops:
        return Crops(**{name: values[which] for name, values in vars(self).items()})

    @property
    def is_whole_box(self) -> npt.NDArray[np.bool_]:
        """Whether a crop is the box itself, neither resized nor shifted: [B]."""
        same = (self.width == self.to_width) & (self.height == self.to_height)
        is_whole_box: npt.NDArray[np.bool_] = same & (self.x == 0) & (self.y == 0)
        return is_whole_box


# ----------------------------------------------------------------------------------------- one image


def crop_one(pixels: Tensor, crops: Crops, i: int, size: int) -> Tensor:
    """Crop i of an image uint8 [3, H, W]: uint8 [3, S, S]. Resized by torch; antialiased ones on a CPU in uint8."""
    left, top, width, height = (int(v[i]) for v in (crops.left, crops.top, crops.width, crops.height))
    to_width, to_height = int(crops.to_width[i]), int(crops.to_height[i])
    part = pixels[:, top : top + height, left : left + width]
    if (to_height, to_width) != (height, width):
        filter = FILTERS[int(crops.filter[i])]
        if filter == "area":
            return _area_crop(pixels, crops[i : i + 1], size)
        if to_width * to_height > max(MAX_RESIZED_PIXELS, size * size):
            return _crop_seen_part(pixels, crops[i : i + 1], size)
        part = _resized(part, to_height, to_width, filter)
    if (to_height, to_width) == (size, size) and crops.x[i] == crops.y[i] == 0:
        return part
    return _window(part, int(crops.x[i]), int(crops.y[i]), size)


def _resized(pixels: Tensor, height: int, width: int, filter: Filter) -> Tensor:
    if filter == "tf_bilinear":
        rows = pixels.permute(1, 2, 0)  # as decoders write them
        rows = _between_neighbours(rows, height, dim=0).flatten(1)  # [height, W * 3]
        values = _between_neighbours(rows, width, dim=1, step=3).view(height, width, 3)
        return _round_down(values).to(torch.uint8).permute(2, 0, 1)
    in_uint8 = pixels.device.type == "cpu"  # elsewhere torch antialiases floating point only
    values = pixels[None] if in_uint8 else pixels[None].float()
    values = F.interpolate(values, (height, width), mode=filter, antialias=True, align_corners=False)[0]
    return values if in_uint8 else _round(values).to(torch.uint8)


def _between_neighbours(values: Tensor, to_length: int, *, dim: int, step: int = 1) -> Tensor:
    """Values interpolated linearly along `dim` to another length, float32; faster than F.interpolate.

    A pixel is `step` numbers there.
    """
    length = values.shape[dim] // step
    position = (torch.arange(to_length, dtype=torch.float32) + 0.5) * (length / to_length) - 0.5
    before = position.clamp_(0, length - 1).long()
    share, after = position - before, (before + 1).clamp_(max=length - 1)
    first, second = (_at(values, each, dim=dim, step=step).float() for each in (before, after))
    return first.lerp_(second, _along(share, values, dim=dim, step=step))


def _area_crop(pixels: Tensor, crop: Crops, size: int) -> Tensor:
    """The one crop of an image; a few pixels count for each, which are added up axis by axis, of what is seen only."""
    columns, across = _covered_pixels(crop.left, crop.width, crop.to_width, crop.x, size)
    lines, down = _covered_pixels(crop.top, crop.height, crop.to_height, crop.y, size)
    left, right = int(columns.min()), int(columns.max()) + 1
    part = pixels[:, :, left:right].permute(1, 2, 0).flatten(1)  # [H, W * 3], as decoders write them
    rows = _weighted_sum(part, lines, down, dim=0)  # [S, W * 3]
    values = _weighted_sum(rows, columns - left, across, dim=1, step=3).view(size, size, 3)
    return _round_down(values).to(torch.uint8).permute(2, 0, 1)


def _covered_pixels(
    first: Integers, extent: Integers, to_extent: Integers, offset: Integers, size: int
) -> tuple[Tensor, Tensor]:
    """Pixels of an image that lie under each of its crop's along one axis, and which share of it each is: [T, S].

    The numbers are [1]: those of one crop, for which NumPy is faster than `_taps`.
    """
    scale = extent / to_extent
    begin = (np.arange(size) + offset) * scale
    pixels = np.floor(begin) + np.arange(int(np.ceil(scale[0])) + 1)[:, None]
    share = np.minimum(pixels + 1, begin + scale) - np.maximum(pixels, begin)
    is_seen = (begin >= 0) & (begin < extent) & (share > 0) & (pixels < extent)
    places = first + np.clip(pixels, 0, extent - 1)
    shares = np.where(is_seen, share / scale, 0)
    return torch.from_numpy(places.astype(np.int64)), torch.from_numpy(shares.astype(np.float32))


def _weighted_sum(values: Tensor, places: Tensor, shares: Tensor, *, dim: int, step: int = 1) -> Tensor:
    """Sums over T of values at places [T, S] of `dim` times shares [T, S], float32; a pixel is `step` numbers there."""
    terms = (
        _at(values, place, dim=dim, step=step).float().mul_(_along(share, values, dim=dim, step=step))
        for place, share in zip(places, shares, strict=True)
    )
    total = next(terms)
    for term in terms:
        total.add_(term)
    return total


def _at(values: Tensor, places: Tensor, *, dim: int, step: int) -> Tensor:
    """The pixels at places [S] of `dim`, where each is `step` numbers."""
    if step > 1:
        places = (step * places[:, None] + torch.arange(step)).flatten()
    return values.index_select(dim, places.to(values.device))


def _along(shares: Tensor, values: Tensor, *, dim: int, step: int) -> Tensor:
    """One share [S] for each pixel of `dim`, as a factor of `_at`."""
    shape = [-1 if each == dim else 1 for each in range(values.ndim)]
    return shares.repeat_interleave(step).view(shape).to(values.device)


def _window(pixels: Tensor, x: int, y: int, size: int) -> Tensor:
    """pixels[:, y : y + size, x : x + size], black where that lies outside."""
    height, width = pixels.shape[1:]
    top, bottom, left, right = max(y, 0), min(y + size, height), max(x, 0), min(x + size, width)
    if (bottom - top, right - left) == (size, size):
        return pixels[:, top:bottom, left:right]
    window = pixels.new_zeros(3, size, size)
    if top < bottom and left < right:
        window[:, top - y : bottom - y, left - x : right - x] = pixels[:, top:bottom, left:right]
    return window


def _crop_seen_part(pixels: Tensor, crop: Crops, size: int) -> Tensor:
    """The one crop of an image without resizing what lies outside it; at most two grey levels from `_resized`'s.

    Torch resizes bytes with weights in fixed point, which these are not.
    """
    left, right = _seen(crop.left, crop.width, crop.to_width, crop.x, size=size)
    top, bottom = _seen(crop.top, crop.height, crop.to_height, crop.y, size=size)
    part = pixels[None, :, top:bottom, left:right]
    return crop_batch(part, replace(crop, left=crop.left - left, top=crop.top - top), size)[0]


def _seen(
    first: Integers, extent: Integers, to_extent: Integers, offset: Integers, *, size: int
) -> tuple[int, int]:
    """Pixels [begin, end) of an image along one axis that the filters look at for a window of `size`; one at least."""
    start, length, to_length, shift = (int(numbers[0]) for numbers in (first, extent, to_extent, offset))
    scale = length / to_length
    reach = math.ceil(2 * max(scale, 1.0)) + 1  # the widest filter's, and a pixel for rounding
    begin = min(max(math.floor(shift * scale) - reach, 0), length - 1)
    end = min(max(math.ceil((shift + size) * scale) + reach, begin + 1), length)
    return start + begin, start + end


# ----------------------------------------------------------------------------------- a batch of one size


def crop_batch(images: Tensor, crops: Crops, size: int) -> Tensor:
    """Crops of images of one size, uint8 [B, 3, H, W] on any device: uint8 [B, 3, S, S].

    A resize is a matrix product: crop = V image W^T with the filter's weights V [S, H] and W [S, W]. Both products are
    rounded to whole grey levels, as Pillow's; with TensorFlow's filters the result alone is, down.
    """
    batch, _, height, width = images.shape
    whole = crops.is_whole_box & (crops.width == width) & (crops.height == height)
    if (height, width) == (size, size) and whole.all():
        return images
    device, is_tensorflow = images.device, np.isin(crops.filter, TENSORFLOW)
    across = weights(
        crops.left, crops.width, crops.to_width, crops.x, crops.filter, length=width, size=size, device=device
    )
    down = weights(
        crops.top,
        crops.height,
        crops.to_height,
        crops.y,
        crops.filter,
        length=height,
        size=size,
        device=device,
    )
    with torch.autocast(device.type, enabled=False), _exact_products():
        rows = images.float().reshape(batch, 3 * height, width) @ across.mT  # [B, 3 H, S]
        rows = _round_those(rows, ~is_tensorflow)
        rows = rows.view(batch, 3, height, size).transpose(1, 2).reshape(batch, height, 3 * size)
        columns = _round_those(down @ rows, ~is_tensorflow)
        columns = _round_down(columns) if is_tensorflow.any() else columns
        return columns.view(batch, size, 3, size).permute(0, 2, 1, 3).to(torch.uint8)  # [B, 3, S, S]


def _round_those(values: Tensor, which: npt.NDArray[np.bool_]) -> Tensor:
    """Values [B, ...] of the images `which` [B] rounded to whole grey levels."""
    if which.all():
        return _round(values)
    if which.any():  # never in a recipe
        values[which] = _round(values[which])
    return values


def _round(values: Tensor) -> Tensor:
    return values.add_(0.5).floor_().clamp_(0, 255)


def _round_down(values: Tensor) -> Tensor:
    return values.add_(ROUNDING_MARGIN).floor_().clamp_(0, 255)


@contextlib.contextmanager
def _exact_products() -> Iterator[None]:
    """Grey levels times weights in full float32, whatever is set for the network."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


def weights(
    first: Integers,
    extent: Integers,
    to_extent: Integers,
    offset: Integers,
    filter: Integers,
    *,
    length: int,
    size: int,
    device: torch.device,
) -> Tensor:
    """Weight of pixel i of an image in pixel j of its crop, along one axis: float32 [B, size, length].

    As Pillow: output pixel j looks at the input around (j + 1/2) scale, scale = extent / to_extent, through the filter
    stretched by max(scale, 1), over the pixels of the box alone, normalised. Rows outside the resized image are 0.
    The numbers are [B].
    """
    places, values, is_used = _taps(first, extent, to_extent, offset, filter, size=size, device=device)
    places = torch.where(is_used, places, length)  # what is not used goes to a column of its own
    return torch.zeros(len(first), size, length + 1, device=device).scatter_(2, places, values)[..., :length]


def _taps(
    first: Integers,
    extent: Integers,
    to_extent: Integers,
    offset: Integers,
    filter: Integers,
    *,
    size: int,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:
    """Which pixels of an image count for pixel j of its crop, along one axis, and how much.

    Indices int64 [B, size, T], weights float32, whether they are used; those that are not have weight 0.
    """
    longest = np.array([1.0, 2.0, 1.0, 1.0])[filter] * np.maximum(extent / to_extent, 1)
    taps = int((2 * longest).max(initial=0)) + 2
    # what is rounded down must not lose to float32 what it is by a hair
    is_long = max(extent.max(initial=0), to_extent.max(initial=0)) > MAX_FLOAT32_EXTENT
    dtype = torch.float64 if is_long or np.isin(filter, TENSORFLOW).any() else torch.float32
    numbers = torch.from_numpy(np.stack([first, extent, to_extent, offset, filter])).to(device, dtype)
    left, extent_, to_extent_, offset_, filter_ = numbers[..., None]  # [B, 1] each
    j = torch.arange(size, device=device) + offset_  # [B, size], output pixels of the resized box
    scale = extent_ / to_extent_
    reach = torch.zeros_like(scale)
    for number in np.unique(filter).tolist():
        reach = torch.where(filter_ == number, _REACHES[number](scale), reach)
    centre = (j + 0.5) * scale
    begin = (centre - reach + 0.5).floor_().clamp_(min=0)  # Pillow's (int)(x + 0.5), cut off at 0
    end = torch.minimum((centre + reach + 0.5).floor_(), extent_)
    # pixels counted from the box's edge
    i = begin[..., None] + torch.arange(taps, device=device)  # [B, size, taps]
    distance = i + (0.5 - centre)[..., None]
    values = torch.zeros_like(distance)
    for number in np.unique(filter).tolist():
        these = _FILTER_FUNCTIONS[number](distance, scale[..., None])
        values = torch.where((filter_ == number)[..., None], these, values)
    is_used = (i < end[..., None]) & ((j >= 0) & (j < to_extent_))[..., None]
    values = torch.where(is_used, values, 0.0)
    total = values.sum(dim=2, keepdim=True)
    values = torch.where(total == 0, 0.0, values / total).float()
    return (i + left[..., None]).long(), values, is_used


def _triangle(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp_(min=0)


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic with a = -1/2, as Pillow's and torch's antialiased resize."""
    x, a = x.abs(), -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _covered(x: Tensor, scale: Tensor) -> Tensor:
    """How much of a pixel at distance x lies under an output pixel, which is `scale` pixels long."""
    return ((1 + scale) / 2 - x.abs()).clamp_(min=0).minimum(scale.clamp(max=1.0))


# By number in FILTERS; from distances and scales in pixels.
_FILTER_FUNCTIONS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    lambda x, scale: _triangle(x / scale.clamp(min=1.0)),
    lambda x, scale: _cubic(x / scale.clamp(min=1.0)),
    _covered,
    lambda x, _: _triangle(x),
)
#: How far a filter looks.
_REACHES: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda scale: scale.clamp(min=1.0),
    lambda scale: 2 * scale.clamp(min=1.0),
    lambda scale: (1 + scale) / 2,
    torch.ones_like,
)
