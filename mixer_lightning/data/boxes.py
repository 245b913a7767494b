"""Which part of an image a random crop takes: as timm and torchvision draw it, and as TensorFlow does.

Legend: B images, T tries for each.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from mixer_lightning.data.crops import Integers
from mixer_lightning.data.stateless_random import Keys, Uniforms, uniform

MAX_TRIES = 10  # of a box that must fit, as in timm and torchvision
MAX_INCEPTION_TRIES = 100  # the same in TensorFlow
NUM_UNIFORMS = 2 + 2 * MAX_TRIES

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Boxes = tuple[Integers, Integers, Integers, Integers]  # left, top, width, height, each [B]
Range = tuple[float, float]


def random_resized(u: Uniforms, widths: Integers, heights: Integers, *, scale: Range, ratio: Range) -> Boxes:
    """As timm's RandomResizedCropAndInterpolation: ten tries, then the largest centred part of allowed aspect.

    Areas are uniform, aspect ratios log-uniform. From random numbers [B, NUM_UNIFORMS].
    """
    low, high = ratio
    smallest, largest = scale
    areas, aspects = u[:, 2 : 2 + MAX_TRIES], u[:, 2 + MAX_TRIES :]  # [B, T]
    areas = (smallest + (largest - smallest) * areas) * (widths * heights)[:, None]
    aspects = np.exp(math.log(low) + (math.log(high) - math.log(low)) * aspects)
    w, h = np.rint(np.sqrt(areas * aspects)), np.rint(np.sqrt(areas / aspects))
    fits = (w > 0) & (w <= widths[:, None]) & (h > 0) & (h <= heights[:, None])
    chosen, any_fits = np.arange(len(u)), fits.any(axis=1)
    first = fits.argmax(axis=1)
    fallback_w = np.maximum(np.minimum(widths, np.rint(heights * high)), 1)
    fallback_h = np.maximum(np.minimum(heights, np.rint(widths / low)), 1)
    w = np.where(any_fits, w[chosen, first], fallback_w).astype(np.int64)
    h = np.where(any_fits, h[chosen, first], fallback_h).astype(np.int64)
    left = np.where(any_fits, integer(u[:, 0], widths - w), (widths - w) // 2)
    top = np.where(any_fits, integer(u[:, 1], heights - h), (heights - h) // 2)
    return left, top, w, h


def inception(
    keys: Keys, u: Uniforms, widths: Integers, heights: Integers, *, scale: Range, ratio: Range
) -> Boxes:
    """As tf.image.sample_distorted_bounding_box: up to a hundred tries, then the whole image.

    From random numbers [B, NUM_UNIFORMS], and more by the keys of images that are too long and narrow for them.
    """
    tried_w, tried_h, tried_fit = _inception_sizes(u[:, 2:3], u[:, 3:4], widths, heights, scale, ratio)
    w, h, fits = tried_w[:, 0], tried_h[:, 0], tried_fit[:, 0]
    again = np.flatnonzero(~fits)
    if len(again):
        v = uniform(keys[again], "inception", 2 * (MAX_INCEPTION_TRIES - 1)).reshape(len(again), 2, -1)
        tries_w, tries_h, tries_fit = _inception_sizes(
            v[:, 0], v[:, 1], widths[again], heights[again], scale, ratio
        )
        chosen, first = np.arange(len(again)), tries_fit.argmax(axis=1)
        w[again], h[again] = tries_w[chosen, first], tries_h[chosen, first]
        fits[again] = tries_fit[chosen, first]
    w, h = np.where(fits, w, widths), np.where(fits, h, heights)
    # the last place is never taken, unless it is the only one
    left, top = (
        integer(u[:, 0], np.maximum(widths - w - 1, 0)),
        integer(u[:, 1], np.maximum(heights - h - 1, 0)),
    )
    return left, top, w, h


def _inception_sizes(
    aspects: Uniforms, places: Uniforms, widths: Integers, heights: Integers, scale: Range, ratio: Range
) -> tuple[Integers, Integers, Bools]:
    """Widths and heights of tried boxes, and whether they fit, [B, T], from random numbers [B, T].

    The aspect ratio is uniform; then the height is, between those of the smallest and the largest area, so that areas
    are not. In float32 (TensorFlow's sample_distorted_bounding_box_op.cc, GenerateRandomCrop).
    """
    width, height = widths[:, None], heights[:, None]
    smallest, largest = (
        (np.float32(share) * width.astype(np.float32) * height.astype(np.float32)).astype(np.float32)
        for share in scale
    )
    low, high = (np.float32(bound) for bound in ratio)
    aspect = aspects.astype(np.float32) * (high - low) + low
    lowest, highest = _rounded(np.sqrt(smallest / aspect)), _rounded(np.sqrt(largest / aspect))
    is_wide = _rounded(highest * aspect) > width
    highest = np.where(is_wide, np.floor((width + 0.5 - 1e-7) / aspect.astype(np.float64)), highest)
    highest = highest.astype(np.int64) - (is_wide & (_rounded(highest * aspect) > width))
    highest = np.minimum(highest, height)
    lowest = np.minimum(lowest, highest)
    h = lowest + integer(places, highest - lowest)
    w = _rounded(h * aspect)
    for step in (1, -1):  # rounding may have left the range of areas
        is_off = w * h < smallest if step == 1 else w * h > largest
        h = np.where(is_off, h + step, h)
        w = np.where(is_off, _rounded(h * aspect), w)
    area = w * h
    fits = (area >= smallest) & (area <= largest) & (w <= width) & (h <= height) & (w > 0) & (h > 0)
    return w, h, fits


def _rounded(values: npt.NDArray[np.floating]) -> Integers:
    """To whole numbers, halves to even, in float32."""
    return np.rint(values.astype(np.float32)).astype(np.int64)


def integer(u: npt.NDArray[np.float64], most: Integers) -> Integers:
    """Uniform over 0 ... most, both included."""
    return np.floor(u * (most + 1)).astype(np.int64)
