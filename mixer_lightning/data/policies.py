"""RandAugment and colour jitter on whole batches of bytes, where the batch is; the pixels come out as Pillow's.

What happens to an image is drawn on the CPU from its key (data/draws.py). Images with the same kind of operation then
go through it together: a look-up table per channel, a blend, or an affine resampling.

Legend: B images of a batch, G of them with one kind of operation, S side in pixels, N operations in a row.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from mixer_lightning.data.stateless_random import Keys, uniform

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Argument = Callable[[Floats, Floats], Floats]  # of an operation, from magnitudes and signs

#: Bytes of images that go through an operation together; its float32 values take many times that.
AT_ONCE = 2**21
#: Grey levels. In float32 a mean of equal levels may fall a little below them, and is rounded down next.
ROUNDING = 2.0**-11
#: Pixels along an axis that an interpolation looks at.
TAPS = {"nearest": 1, "bilinear": 2, "bicubic": 4}


class Operation(IntEnum):
    """What is done to an image; most take one argument."""

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
    # from several channels or pixels
    COLOR = 9  # factor
    SHARPNESS = 10  # factor
    BLUR = 11  # standard deviation in pixels
    # affine: the source of a pixel lies at
    SHEAR_X = 12  # x + argument * y
    SHEAR_Y = 13  # y + argument * x
    TRANSLATE_X = 14  # x + argument * S
    TRANSLATE_Y = 15  # y + argument * S
    SHIFT_X = 16  # x + argument * S, a whole number of pixels
    SHIFT_Y = 17  # y + argument * S, a whole number of pixels
    ROTATE = 18  # degrees, counterclockwise


# ------------------------------------------------------------------------------------------ notations

_TORCHVISION = re.compile(r"torchvision-n(?P<n>\d+)-m(?P<m>\d+)")
_TIMM = re.compile(r"rand(-(m\d+|n\d+|p[01](\.\d+)?|mstd\d+(\.\d+)?|mmax\d+|inc[01]|t(weights|3aw?)))*")
_WEIGHTED = {"weights": 15, "3aw": 14}  # operations of timm's sets that are drawn without replacement


def check(text: str) -> None:
    """Raise ValueError if `text` is not RandAugment in timm's or torchvision's notation."""
    if _TIMM.fullmatch(text):
        drawn = max(map(int, re.findall(r"-n(\d+)", text)), default=2)
        for name in re.findall(r"-t(\w+)", text):
            if drawn > _WEIGHTED.get(name, drawn):
                raise ValueError(
                    f"augment.rand_augment: {text!r} draws {drawn} different operations, but t{name} has only "
                    f"{_WEIGHTED[name]}. Lower n."
                )
        return
    match = _TORCHVISION.fullmatch(text)
    if match is None:
        raise ValueError(
            f"augment.rand_augment: cannot read {text!r}. Write timm's notation, as in rand-m9-mstd0.5-inc1, "
            "or torchvision's operations as torchvision-n2-m12."
        )
    if int(match["m"]) > 30:
        raise ValueError(f"augment.rand_augment: torchvision's magnitudes end at 30; {text!r} asks for more.")


def _none(magnitude: Floats, sign: Floats) -> Floats:
    return np.zeros_like(magnitude)


def _factor(magnitude: Floats, sign: Floats) -> Floats:
    return magnitude / 10 * 1.8 + 0.1


def _growing_factor(magnitude: Floats, sign: Floats) -> Floats:
    return np.maximum(0.1, 1.0 + sign * (magnitude / 10 * 0.9))


#: timm's operations, and their arguments from its LEVEL_TO_ARG.
TIMM: dict[str, tuple[Operation, Argument]] = {
    "AutoContrast": (Operation.AUTOCONTRAST, _none),
    "Equalize": (Operation.EQUALIZE, _none),
    "Invert": (Operation.INVERT, _none),
    "Rotate": (Operation.ROTATE, lambda m, sign: sign * (m / 10 * 30)),
    "Posterize": (Operation.POSTERIZE, lambda m, _: np.trunc(m / 10 * 4)),
    "PosterizeIncreasing": (Operation.POSTERIZE, lambda m, _: 4 - np.trunc(m / 10 * 4)),
    "Solarize": (Operation.SOLARIZE, lambda m, _: np.minimum(256, np.trunc(m / 10 * 256))),
    "SolarizeIncreasing": (Operation.SOLARIZE, lambda m, _: 256 - np.minimum(256, np.trunc(m / 10 * 256))),
    "SolarizeAdd": (Operation.SOLARIZE_ADD, lambda m, _: np.minimum(128, np.trunc(m / 10 * 110))),
    "Color": (Operation.COLOR, _factor),
    "ColorIncreasing": (Operation.COLOR, _growing_factor),
    "Contrast": (Operation.CONTRAST, _factor),
    "ContrastIncreasing": (Operation.CONTRAST, _growing_factor),
    "Brightness": (Operation.BRIGHTNESS, _factor),
    "BrightnessIncreasing": (Operation.BRIGHTNESS, _growing_factor),
    "Sharpness": (Operation.SHARPNESS, _factor),
    "SharpnessIncreasing": (Operation.SHARPNESS, _growing_factor),
    "ShearX": (Operation.SHEAR_X, lambda m, sign: sign * (m / 10 * 0.3)),
    "ShearY": (Operation.SHEAR_Y, lambda m, sign: sign * (m / 10 * 0.3)),
    "TranslateXRel": (Operation.TRANSLATE_X, lambda m, sign: sign * (m / 10 * 0.45)),
    "TranslateYRel": (Operation.TRANSLATE_Y, lambda m, sign: sign * (m / 10 * 0.45)),
    "Desaturate": (Operation.COLOR, lambda m, _: 1 - np.minimum(1, 0.5 + 0.5 * (m / 10))),
    "GaussianBlur": (Operation.BLUR, lambda m, _: np.minimum(2, 0.1 + (2 - 0.1) * (m / 10))),
}


def _bin(last: float, magnitude: Floats) -> Floats:
    """torchvision's float32 levels: 31 of them from 0 to `last`."""
    levels: Floats = torch.linspace(0.0, last, 31).double().numpy()
    return levels[magnitude.astype(np.int64)]


def _tangent(slope: Floats) -> Floats:
    """The slope as torchvision hands it on, through an angle in degrees."""
    return np.tan(np.radians(np.degrees(np.arctan(slope))))


#: torchvision.transforms.RandAugment's operations, and their arguments from its magnitude bins.
TORCHVISION: dict[str, tuple[Operation, Argument]] = {
    "Identity": (Operation.IDENTITY, _none),
    "ShearX": (Operation.SHEAR_X, lambda m, sign: _tangent(sign * _bin(0.3, m))),
    "ShearY": (Operation.SHEAR_Y, lambda m, sign: _tangent(sign * _bin(0.3, m))),
    "TranslateX": (Operation.SHIFT_X, lambda m, sign: -sign * (150 / 331 * (m / 30))),
    "TranslateY": (Operation.SHIFT_Y, lambda m, sign: -sign * (150 / 331 * (m / 30))),
    "Rotate": (Operation.ROTATE, lambda m, sign: sign * _bin(30.0, m)),
    "Brightness": (Operation.BRIGHTNESS, lambda m, sign: 1 + sign * _bin(0.9, m)),
    "Color": (Operation.COLOR, lambda m, sign: 1 + sign * _bin(0.9, m)),
    "Contrast": (Operation.CONTRAST, lambda m, sign: 1 + sign * _bin(0.9, m)),
    "Sharpness": (Operation.SHARPNESS, lambda m, sign: 1 + sign * _bin(0.9, m)),
    "Posterize": (Operation.POSTERIZE, lambda m, _: 8 - np.rint(m / 7.5)),
    "Solarize": (Operation.SOLARIZE, lambda m, _: 255 - 8.5 * m),
    "AutoContrast": (Operation.AUTOCONTRAST, _none),
    "Equalize": (Operation.EQUALIZE, _none),
}

# ---------------------------------------------------------------------------------------- RandAugment


@dataclass(frozen=True, kw_only=True)
class RandAugmentDraws:
    """What shall be done to the images of a batch, in this order."""

    operations: Integers  # [B, N], of Operation
    arguments: Floats  # [B, N]
    taps: Integers  # [B, N], of TAPS; of affine operations


class RandAugment:
    """RandAugment (arXiv 1909.13719) in timm's notation or torchvision's, with the operations of either as on Pillow.

    text           "rand-m9-mstd0.5-inc1" or "torchvision-n2-m12" (see `check`)
    interpolation  of timm's affine operations; "random" draws bilinear or bicubic each time; torchvision's: nearest
    mean           in [0, 1], per channel: the colour of what moves in from outside with timm; with torchvision: black

    Posterize with no bits left makes an image black, as older Pillow does; newer refuses it.
    """

    def __init__(
        self, text: str, *, interpolation: Literal["bilinear", "bicubic", "random"], mean: Sequence[float]
    ) -> None:
        check(text)
        self.weights: Floats | None = None  # of the choices; with them, an image gets no operation twice
        if match := _TORCHVISION.fullmatch(text):
            self.choices = list(TORCHVISION.values())
            self.num_operations = int(match["n"])
            self.probability = 1.0
            self.magnitude, self.magnitude_std, self.magnitude_max = float(match["m"]), 0.0, 30.0
            self.taps = (TAPS["nearest"], TAPS["nearest"])
            self.fill = np.zeros(3, np.uint8)
        else:
            from timm.data.auto_augment import rand_augment_transform

            self.fill = np.clip(np.rint(255 * np.asarray(mean)), 0, 255).astype(np.uint8)
            read: Any = rand_augment_transform(text, {"img_mean": tuple(self.fill)})
            self.choices = [TIMM[operation.name] for operation in read.ops]
            if read.choice_weights is not None:
                self.weights = np.asarray(read.choice_weights)
            self.num_operations = int(read.num_layers)
            one = read.ops[0]
            self.probability = float(one.prob)
            self.magnitude, self.magnitude_std = float(one.magnitude), float(one.magnitude_std)
            self.magnitude_max = float(one.magnitude_max or 10)
            names = ("bilinear", "bicubic") if interpolation == "random" else (interpolation, interpolation)
            self.taps = (TAPS[names[0]], TAPS[names[1]])

    def draw(self, keys: Keys) -> RandAugmentDraws:
        """Operations and their arguments for the images with these keys [B]."""
        n, k = self.num_operations, len(self.choices)
        u = uniform(keys, "rand_augment", 6 * n + (0 if self.weights is None else k))
        choice, skip, size, angle, sign, filter = u[:, : 6 * n].reshape(len(u), n, 6).transpose(2, 0, 1)
        if self.weights is None:
            chosen = np.floor(k * choice).astype(np.int64)  # [B, N]
        else:  # a race of k exponential clocks: its first n are a weighted draw without replacement
            chosen = np.argsort(-np.log1p(-u[:, 6 * n :]) / self.weights, axis=1)[:, :n]
        if np.isinf(self.magnitude_std):
            magnitude = size * self.magnitude
        else:  # normal numbers by Box and Muller
            noise = np.sqrt(-2 * np.log1p(-size)) * np.cos(2 * np.pi * angle)
            magnitude = self.magnitude + self.magnitude_std * noise
        magnitude = np.clip(magnitude, 0, self.magnitude_max)
        signs = np.where(sign < 0.5, 1.0, -1.0)

        operations = np.zeros_like(chosen)
        arguments = np.zeros_like(magnitude)
        applied = skip < self.probability
        for i, (operation, argument) in enumerate(self.choices):
            these = applied & (chosen == i)
            operations[these] = operation
            arguments[these] = argument(magnitude[these], signs[these])
        return RandAugmentDraws(
            operations=operations, arguments=arguments, taps=np.where(filter < 0.5, *self.taps)
        )

    def __call__(self, images: Tensor, draws: RandAugmentDraws) -> Tensor:
        """uint8 [B, 3, S, S], in any memory format, to contiguous uint8 [B, 3, S, S]."""
        return _operate(images, draws.operations, draws.arguments, draws.taps, fill=self.fill)


# --------------------------------------------------------------------------------------- colour jitter


@dataclass(frozen=True, kw_only=True)
class ColorJitterDraws:
    """In which order, and how much."""

    operations: Integers  # [B, 3], of Operation
    factors: Floats  # [B, 3]


class ColorJitter:
    """Brightness, contrast and saturation each times a factor in 1 +- strength, in a random order.

    As torchvision.transforms.ColorJitter does it to Pillow's images.
    """

    OPERATIONS = np.array([Operation.BRIGHTNESS, Operation.CONTRAST, Operation.COLOR], np.int64)

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def draw(self, keys: Keys) -> ColorJitterDraws:
        """Order and factors for the images with these keys [B]."""
        u = uniform(keys, "color_jitter", 6)
        low, high = max(0.0, 1 - self.strength), 1 + self.strength
        return ColorJitterDraws(
            operations=self.OPERATIONS[np.argsort(u[:, :3], axis=1)], factors=low + (high - low) * u[:, 3:]
        )

    def __call__(self, images: Tensor, draws: ColorJitterDraws) -> Tensor:
        """uint8 [B, 3, S, S], in any memory format, to contiguous uint8 [B, 3, S, S]."""
        taps = np.ones_like(draws.operations)
        return _operate(images, draws.operations, draws.factors, taps, fill=np.zeros(3, np.uint8))


# -------------------------------------------------------------------------------- operations on a batch

_TABLES = (*range(Operation.INVERT, Operation.EQUALIZE + 1),)
_AFFINE = (*range(Operation.SHEAR_X, Operation.ROTATE + 1),)
_ALONG_X = (Operation.SHEAR_X, Operation.TRANSLATE_X, Operation.SHIFT_X, Operation.ROTATE)
_ALONG_Y = (Operation.SHEAR_Y, Operation.TRANSLATE_Y, Operation.SHIFT_Y, Operation.ROTATE)

#: The operation that stands for all that go through the same kernels.
_KIND = np.arange(len(Operation))
_KIND[[*_TABLES]] = Operation.INVERT
_KIND[[*_AFFINE]] = Operation.ROTATE


def _operate(
    images: Tensor, operations: Integers, arguments: Floats, taps: Integers, *, fill: npt.NDArray[np.uint8]
) -> Tensor:
    """Each of the images [B, 3, S, S] through its operations [B, N]. Images are sorted by operation on the way."""
    images = images.contiguous()
    places = np.arange(len(images))  # of the original images among the sorted ones
    for done, argument, tap in zip(operations.T, arguments.T, taps.T, strict=True):
        across = np.where(np.isin(done, _ALONG_X), tap, 1)
        down = np.where(np.isin(done, _ALONG_Y), tap, 1)
        groups = 64 * _KIND[done] + 8 * across + down
        order = np.lexsort((done, groups))
        images = images.index_select(0, _to_device(places[order], images.device))
        places[order] = np.arange(len(order))
        for start, stop in _stretches(groups[order], at_once=max(1, AT_ONCE // images.shape[1:].numel())):
            these = order[start:stop]
            if done[these[0]] == Operation.IDENTITY:
                continue
            images[start:stop] = _changed(
                images[start:stop],
                done[these],
                argument[these],
                across=int(across[these[0]]),
                down=int(down[these[0]]),
                fill=fill,
            )
    return images.index_select(0, _to_device(places, images.device))


def _stretches(groups: Integers, *, at_once: int) -> Iterator[tuple[int, int]]:
    """Where shard_sizes of equal numbers start and stop, none longer than `at_once`."""
    bounds = np.flatnonzero(np.diff(groups, prepend=-1, append=-1)).tolist()
    for start, stop in itertools.pairwise(bounds):
        for first in range(start, stop, at_once):
            yield first, min(first + at_once, stop)


def _changed(
    images: Tensor,
    operations: Integers,
    arguments: Floats,
    *,
    across: int,
    down: int,
    fill: npt.NDArray[np.uint8],
) -> Tensor:
    """Images [G, 3, S, S] through operations [G] of one kind."""
    match operations[0]:
        case Operation.COLOR:
            pixels = images.float()
            return _blend(_grey(pixels), pixels, arguments)
        case Operation.SHARPNESS:
            return _blend(_smooth(images), images.float(), arguments)
        case Operation.BLUR:
            return _blur(images, arguments)
        case operation if operation < Operation.COLOR:
            return _look_up(images, operations, arguments)
    matrices = _matrices(operations, arguments, images.shape[-1])
    colour = _to_device(fill, images.device)
    if across == down == 1:
        return _nearest(images, matrices, colour)
    return _interpolated(images, matrices, colour, across=across, down=down)


def _to_device(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """A copy that the CPU does not wait for."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


# ---- tables


def _look_up(images: Tensor, operations: Integers, arguments: Floats) -> Tensor:
    """Every byte through the table of its image and channel; operations in ascending order."""
    tables = _to_device(_fixed_tables(operations, arguments), images.device)[:, None].repeat(1, 3, 1)
    for operation, from_image in (
        (Operation.CONTRAST, _contrast_tables),
        (Operation.AUTOCONTRAST, _autocontrast_tables),
        (Operation.EQUALIZE, _equalize_tables),
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


def _matrices(operations: Integers, arguments: Floats, side: int) -> Floats:
    """Where pixels come from: rows a, b, c, d, e, f of x' = a x + b y + c, y' = d x + e y + f, [G, 6]."""
    matrices = np.tile([1.0, 0.0, 0.0, 0.0, 1.0, 0.0], (len(operations), 1))
    for operation, column, values in (
        (Operation.SHEAR_X, 1, arguments),
        (Operation.SHEAR_Y, 3, arguments),
        (Operation.TRANSLATE_X, 2, arguments * side),
        (Operation.TRANSLATE_Y, 5, arguments * side),
        (Operation.SHIFT_X, 2, np.trunc(arguments * side)),
        (Operation.SHIFT_Y, 5, np.trunc(arguments * side)),
    ):
        these = operations == operation
        matrices[these, column] = values[these]
    these = operations == Operation.ROTATE
    radians = -np.radians(arguments[these] % 360.0)
    cos, sin, centre = np.round(np.cos(radians), 15), np.round(np.sin(radians), 15), side / 2
    c, f = cos * -centre + sin * -centre + centre, -sin * -centre + cos * -centre + centre
    matrices[these] = np.stack([cos, sin, c, -sin, cos, f], axis=1)
    return matrices


def _nearest(images: Tensor, matrices: Floats, fill: Tensor) -> Tensor:
    """The pixel that lies where a pixel comes from; in Pillow's fixed point, 16 bits before and after."""
    side = images.shape[-1]
    fixed = matrices.copy()
    fixed[:, [2, 5]] += matrices[:, [0, 3]] * 0.5 + matrices[:, [1, 4]] * 0.5  # from centres of pixels
    fixed = np.floor(fixed * 65536 + 0.5).astype(np.int32)
    a, b, c, d, e, f = _to_device(fixed, images.device).T[..., None, None]  # each [G, 1, 1]
    h = torch.arange(side, device=images.device, dtype=torch.int32)[None, None]  # [1, 1, S]
    x, y = ((p * h + r + q * h.mT) >> 16 for p, q, r in ((a, b, c), (d, e, f)))  # [G, S, S]
    column, line = x.clamp(0, side - 1), y.clamp(0, side - 1)
    return _within(_at(images, line, column), (column == x) & (line == y), fill)


def _interpolated(images: Tensor, matrices: Floats, fill: Tensor, *, across: int, down: int) -> Tensor:
    """A weighted mean of `across` x `down` pixels around where a pixel comes from; edges are repeated.

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
    value = _weighted(rows, line_weights).add_(ROUNDING).clamp_(0, 255)
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
