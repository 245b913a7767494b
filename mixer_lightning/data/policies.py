"""RandAugment and colour jitter on whole uint8 batches: which operations an image gets, and how strong.

Both are sampled on the CPU from the image's key (data/stateless_random.py) and applied where the batch is
(data/operations.py).

Legend: B images of a batch, S side in pixels, N operations in a row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mixer_lightning.data.image_ops import TAPS, Floats, Integers, Operation
from mixer_lightning.data.operations import apply_operations
from mixer_lightning.data.stateless_random import Keys, uniform

Argument = Callable[[Floats, Floats], Floats]  # of an operation, from magnitudes and signs


# ------------------------------------------------------------------------------------------ notations

_TORCHVISION = re.compile(r"torchvision-n(?P<n>\d+)-m(?P<m>\d+)")
_BIG_VISION = re.compile(r"big_vision-n(?P<n>\d+)-m(?P<m>\d+)")
_TIMM = re.compile(r"rand(-(m\d+|n\d+|p[01](\.\d+)?|mstd\d+(\.\d+)?|mmax\d+|inc[01]|t(weights|3aw?)))*")
_WEIGHTED = {"weights": 15, "3aw": 14}  # operations of timm's sets that are sampled without replacement


def check_policy(text: str) -> None:
    """Raise ValueError if `text` is not RandAugment in timm's, torchvision's or big_vision's notation."""
    if _TIMM.fullmatch(text):
        count = max(map(int, re.findall(r"-n(\d+)", text)), default=2)
        for name in re.findall(r"-t(\w+)", text):
            if count > _WEIGHTED.get(name, count):
                raise ValueError(
                    f"augment.rand_augment: {text!r} samples {count} different operations, but t{name} has only "
                    f"{_WEIGHTED[name]}. Lower n."
                )
        return
    match = _TORCHVISION.fullmatch(text) or _BIG_VISION.fullmatch(text)
    if match is None:
        raise ValueError(
            f"augment.rand_augment: cannot read {text!r}. Write timm's notation, as in rand-m9-mstd0.5-inc1, "
            "torchvision's operations as torchvision-n2-m12, or big_vision's as big_vision-n2-m15."
        )
    program, last = ("torchvision", 30) if match.re is _TORCHVISION else ("big_vision", 22)
    if int(match["m"]) > last:  # beyond 22 big_vision's Posterize would keep more than 8 bits, and fails
        raise ValueError(
            f"augment.rand_augment: {program}'s magnitudes end at {last}; {text!r} asks for more."
        )


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

#: big_vision's operations and their arguments, from its level_to_arg. Solarize's threshold is cast to uint8, where 256
#: is 0 again; Posterize without bits keeps one, since TensorFlow shifts a uint8 by 7 at most.
BIG_VISION: dict[str, tuple[Operation, Argument]] = {
    "AutoContrast": (Operation.TF_AUTOCONTRAST, _none),
    "Equalize": (Operation.EQUALIZE, _none),
    "Invert": (Operation.INVERT, _none),
    "Rotate": (Operation.TF_ROTATE, lambda m, sign: sign * (m / 10 * 30)),
    "Posterize": (Operation.POSTERIZE, lambda m, _: np.maximum(1, np.trunc(m / 10 * 4))),
    "Solarize": (Operation.SOLARIZE, lambda m, _: np.trunc(m / 10 * 256) % 256),
    "Color": (Operation.TF_COLOR, _factor),
    "Contrast": (Operation.TF_CONTRAST, _factor),
    "Brightness": (Operation.BRIGHTNESS, _factor),
    "Sharpness": (Operation.TF_SHARPNESS, _factor),
    "ShearX": (Operation.TF_SHEAR_X, lambda m, sign: sign * (m / 10 * 0.3)),
    "ShearY": (Operation.TF_SHEAR_Y, lambda m, sign: sign * (m / 10 * 0.3)),
    "TranslateX": (Operation.TF_TRANSLATE_X, lambda m, sign: sign * (m / 10 * 100)),
    "TranslateY": (Operation.TF_TRANSLATE_Y, lambda m, sign: sign * (m / 10 * 100)),
    "Cutout": (Operation.CUTOUT, lambda m, _: np.trunc(m / 10 * 40)),
    "SolarizeAdd": (Operation.SOLARIZE_ADD, lambda m, _: np.trunc(m / 10 * 110)),
}

# ---------------------------------------------------------------------------------------- RandAugment


@dataclass(frozen=True, kw_only=True)
class RandAugmentParams:
    """What is done to the images of a batch, in this order."""

    operations: Integers  # [B, N], of Operation
    arguments: Floats  # [B, N]
    taps: Integers  # [B, N], of TAPS; of affine operations
    centres: Floats  # [B, N, 2], line and column as shares of S; of CUTOUT


class RandAugment:
    """RandAugment (arXiv 1909.13719) as timm, torchvision or big_vision do it; the former two as on Pillow's images.

    text           "rand-m9-mstd0.5-inc1", "torchvision-n2-m12" or "big_vision-n2-m15" (see `check_policy`)
    interpolation  of timm's affine operations; "random" chooses bilinear or bicubic each time; the others': nearest
    mean           in [0, 1], per channel: the colour of what moves in from outside with timm; with torchvision it is
                   black, with big_vision 128

    Posterize with no bits left makes an image black, as older Pillow does; newer refuses it.
    """

    def __init__(
        self, text: str, *, interpolation: Literal["bilinear", "bicubic", "random"], mean: Sequence[float]
    ) -> None:
        check_policy(text)
        self.weights: Floats | None = None  # of the choices; with them, an image gets no operation twice
        if match := _TORCHVISION.fullmatch(text) or _BIG_VISION.fullmatch(text):
            choices, level = (TORCHVISION, 0) if match.re is _TORCHVISION else (BIG_VISION, 128)
            self.choices = list(choices.values())
            self.num_operations = int(match["n"])
            self.probability = 1.0
            self.magnitude, self.magnitude_std, self.magnitude_max = float(match["m"]), 0.0, 30.0
            self.taps = (TAPS["nearest"], TAPS["nearest"])
            self.fill = np.full(3, level, np.uint8)
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

    def sample_params(self, keys: Keys) -> RandAugmentParams:
        """Operations and their arguments for the images with these keys [B]."""
        n, k = self.num_operations, len(self.choices)
        u = uniform(keys, "rand_augment", 6 * n + (0 if self.weights is None else k))
        choice, skip, size, angle, sign, filter = u[:, : 6 * n].reshape(len(u), n, 6).transpose(2, 0, 1)
        if self.weights is None:
            chosen = np.floor(k * choice).astype(np.int64)  # [B, N]
        else:  # a race of k exponential clocks: its first n are a weighted sample without replacement
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
        return RandAugmentParams(
            operations=operations,
            arguments=arguments,
            taps=np.where(filter < 0.5, *self.taps),
            centres=np.stack([size, angle], axis=-1),
        )

    def __call__(self, images: Tensor, params: RandAugmentParams) -> Tensor:
        """uint8 [B, 3, S, S], in any memory format, to contiguous uint8 [B, 3, S, S]."""
        return apply_operations(
            images,
            params.operations,
            params.arguments,
            params.taps,
            fill=self.fill,
            centres=params.centres,
        )


# --------------------------------------------------------------------------------------- colour jitter


@dataclass(frozen=True, kw_only=True)
class ColorJitterParams:
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

    def sample_params(self, keys: Keys) -> ColorJitterParams:
        """Order and factors for the images with these keys [B]."""
        u = uniform(keys, "color_jitter", 6)
        low, high = max(0.0, 1 - self.strength), 1 + self.strength
        return ColorJitterParams(
            operations=self.OPERATIONS[np.argsort(u[:, :3], axis=1)], factors=low + (high - low) * u[:, 3:]
        )

    def __call__(self, images: Tensor, params: ColorJitterParams) -> Tensor:
        """uint8 [B, 3, S, S], in any memory format, to contiguous uint8 [B, 3, S, S]."""
        taps = np.ones_like(params.operations)
        return apply_operations(images, params.operations, params.factors, taps, fill=np.zeros(3, np.uint8))
