"""From stored images to the model's input: one augmentation recipe.

What is random about a sample follows from its key (data/stateless_random.py), and is computed for a whole batch at
once: first its crop, which the decoder needs, then what happens to the pixels of the batch on the device.

Legend: B images of a batch, K classes, S side of the model's input in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mixer_lightning.data import mixing
from mixer_lightning.data.boxes import NUM_UNIFORMS, Boxes, inception, integer, random_resized
from mixer_lightning.data.crops import FILTERS, Crops, Filter, Integers
from mixer_lightning.data.operations import flipped
from mixer_lightning.data.policies import (
    ColorJitter,
    ColorJitterParams,
    RandAugment,
    RandAugmentParams,
    check_policy,
)
from mixer_lightning.data.shuffling import Shuffle
from mixer_lightning.data.stateless_random import Keys, uniform
from mixer_lightning.ranges import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
)


@dataclass(frozen=True)
class AugmentParams:
    """What happens to the pixels of a batch; NumPy arrays, so that grouping images never waits for a GPU."""

    flip: npt.NDArray[np.bool_]  # [B]
    rand_augment: RandAugmentParams | None
    color_jitter: ColorJitterParams | None


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What happens to images between the source and the model. The defaults augment nothing.

    Sampled from the sample's key:
      crop             "random_resized": a random part of area share `crop_scale` and aspect ratio `crop_ratio`,
                       resized to S (arXiv 1409.4842), as in timm and torchvision; "inception": the same as
                       TensorFlow draws it, with smaller areas; "resize_random": short side to floor(S /
                       crop_fraction), then a random S x S part; "square_random": the same with both sides; "pad":
                       short side to S, `crop_padding` black pixels on each side, then a random S x S part;
                       "none": the crop of evaluation
      interpolation    of that resize (data/crops.py says which there are) and, bilinear or bicubic, of timm's
                       RandAugment's geometry; "random" chooses one of these per image
      flip             probability of a horizontal flip
      rand_augment     timm's notation "rand-m9-mstd0.5-inc1" (magnitude m, n operations, probability p of each,
                       default .5; magnitudes above 10 count as 10 unless "mmax" raises that limit), or
                       "torchvision-n2-m12" for torchvision's operations (n operations of magnitude m out of 30), or
                       "big_vision-n2-m15" for big_vision's; null for none
      color_jitter     brightness, contrast and saturation each times a factor in 1 +- color_jitter

    On the device, per batch (data/mixing.py):
      mixup, cutmix    Beta parameters, 0 for off; `mix_probability` of either; `mix_switch` of CutMix if both are on
      mix_per          what these are drawn for: each "device_batch", as the processes of timm do, or once for the
                       global "batch", as in big_vision; images are mixed with others of their device_batch
      mean, std        per channel, for values in [0, 1]
      erase            probability of erasing a rectangle after normalisation: "pixel" is timm's, with noise, "const"
                       is torchvision's, with 0

    After all that, in training and evaluation alike:
      shuffle          one fixed order of the pixels of every image (data/shuffling.py), as in arXiv 2105.01601, figure
                       4: "patches" of `shuffle_patch` pixels a side in another order and the pixels in each by one
                       common permutation, "pixels" of the whole image; `shuffle_seed` says which order

    Before all that, in training and evaluation alike:
      exif_orientation turn photographs as their metadata say they were taken; off in the papers, timm and torchvision

    Evaluation: "short_side": short side to floor(S / eval_crop), "square": both sides to it; the S x S centre of that.

    Where sizes are not whole, `eval_rounding` is "torchvision", timm's too: the long side of a resized image down, the
    offset of its centre to the nearest even number; or "big_vision" (resize_small, central_crop): the long side to
    the nearest number, the offset down.
    """

    crop: Literal["random_resized", "inception", "resize_random", "square_random", "pad", "none"] = "none"
    crop_scale: tuple[PositiveFraction, PositiveFraction] = (0.08, 1.0)
    crop_ratio: tuple[PositiveFloat, PositiveFloat] = (0.75, 1.3333333333333333)
    crop_padding: NonNegativeInt = 0
    crop_fraction: PositiveFraction = 0.875
    interpolation: Literal[Filter, "random"] = "bilinear"
    flip: Fraction = 0.0
    rand_augment: str | None = None
    color_jitter: NonNegativeFloat = 0.0
    mixup: NonNegativeFloat = 0.0
    cutmix: NonNegativeFloat = 0.0
    mix_probability: Fraction = 1.0
    mix_switch: Fraction = 0.5
    mix_per: Literal["device_batch", "batch"] = "device_batch"
    mean: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    std: list[PositiveFloat] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    erase: Fraction = 0.0
    erase_mode: Literal["pixel", "const"] = "pixel"
    eval_crop: PositiveFraction = 1.0
    eval_resize: Literal["short_side", "square"] = "short_side"
    eval_interpolation: Filter = "bilinear"
    eval_rounding: Literal["torchvision", "big_vision"] = "torchvision"
    exif_orientation: bool = False
    shuffle: Literal["none", "patches", "pixels"] = "none"
    shuffle_patch: PositiveInt = 16
    shuffle_seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        _one_of(
            "crop", self.crop, "random_resized", "inception", "resize_random", "square_random", "pad", "none"
        )
        _one_of("interpolation", self.interpolation, *FILTERS, "random")
        _one_of("mix_per", self.mix_per, "device_batch", "batch")
        _one_of("erase_mode", self.erase_mode, "pixel", "const")
        _one_of("eval_resize", self.eval_resize, "short_side", "square")
        _one_of("eval_interpolation", self.eval_interpolation, *FILTERS)
        _one_of("eval_rounding", self.eval_rounding, "torchvision", "big_vision")
        _one_of("shuffle", self.shuffle, "none", "patches", "pixels")
        if self.shuffle_patch < 1 or self.shuffle_seed < 0:
            raise ValueError(
                f"augment.shuffle_patch must be at least 1 and augment.shuffle_seed at least 0; they are "
                f"{self.shuffle_patch} and {self.shuffle_seed}."
            )
        for name in ("flip", "mix_probability", "mix_switch", "erase"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"augment.{name} is a probability; {getattr(self, name)} is not between 0 and 1."
                )
        for name in ("mixup", "cutmix", "color_jitter", "crop_padding"):
            if getattr(self, name) < 0:
                raise ValueError(f"augment.{name} must not be negative; it is {getattr(self, name)}.")
        for name in ("mean", "std"):
            if len(getattr(self, name)) != 3:
                raise ValueError(
                    f"augment.{name} needs three numbers (red, green, blue); it is {getattr(self, name)}."
                )
        if min(self.std) <= 0:
            raise ValueError(f"augment.std must be positive; it is {list(self.std)}.")
        if len(self.crop_scale) != 2 or not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"augment.crop_scale needs 0 < low <= high <= 1; it is {list(self.crop_scale)}.")
        if len(self.crop_ratio) != 2 or not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"augment.crop_ratio needs 0 < low <= high; it is {list(self.crop_ratio)}.")
        for name in ("crop_fraction", "eval_crop"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"augment.{name} must be in (0, 1]; it is {getattr(self, name)}.")
        if self.rand_augment is not None:
            check_policy(self.rand_augment)

    # ---- before decoding

    def train_crops(self, keys: Keys, widths: Integers, heights: Integers, image_size: int) -> Crops:
        """A random crop of each image; widths and heights in pixels [B]."""
        if self.crop == "none":
            return self.eval_crops(widths, heights, image_size)
        u = uniform(keys, "view", NUM_UNIFORMS + 1)  # named so for good: the name is part of the seed
        if self.interpolation == "random":
            filters = (u[:, 2] < 0.5).astype(np.int64)
        else:
            filters = np.full(len(u), FILTERS.index(self.interpolation))
        if self.crop in ("random_resized", "inception"):
            shape = {"scale": self.crop_scale, "ratio": self.crop_ratio}
            u = np.delete(u, 2, axis=1)  # which chose the filter
            if self.crop == "inception":
                boxes = inception(keys, u, widths, heights, **shape)
            else:
                boxes = random_resized(u, widths, heights, **shape)
            return _resized_boxes(boxes, image_size, filters)
        side = image_size if self.crop == "pad" else math.floor(image_size / self.crop_fraction)
        border = self.crop_padding if self.crop == "pad" else 0
        if self.crop == "square_random":
            to_width = to_height = np.full_like(widths, side)
        else:
            to_width, to_height = self._short_side(widths, heights, side)
        x = integer(u[:, 0], to_width + 2 * border - image_size) - border
        y = integer(u[:, 1], to_height + 2 * border - image_size) - border
        return _whole_images(widths, heights, to_width, to_height, x, y, filters)

    def eval_crops(self, widths: Integers, heights: Integers, image_size: int) -> Crops:
        """The crop of each image for evaluation."""
        side = math.floor(image_size / self.eval_crop)
        if self.eval_resize == "square":
            to_width = to_height = np.full_like(widths, side)
        else:
            to_width, to_height = self._short_side(widths, heights, side)
        centre = np.floor if self.eval_rounding == "big_vision" else np.rint
        x, y = (centre((extent - image_size) / 2).astype(np.int64) for extent in (to_width, to_height))
        filters = np.full(len(widths), FILTERS.index(self.eval_interpolation))
        return _whole_images(widths, heights, to_width, to_height, x, y, filters)

    def sample_params(self, keys: Keys) -> AugmentParams:
        """What happens to the pixels of training images."""
        return AugmentParams(
            flip=uniform(keys, "flip", 1)[:, 0] < self.flip,
            rand_augment=self._rand_augment.sample_params(keys) if self._rand_augment is not None else None,
            color_jitter=self._color_jitter.sample_params(keys) if self._color_jitter is not None else None,
        )

    # ---- a batch, on its device

    def train_batch(
        self,
        images: Tensor,
        labels: Tensor,
        params: AugmentParams,
        num_classes: int,
        *,
        batch_seed: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Crops uint8 [B, 3, S, S] and labels int64 [B] or [B, L] to float32 images and soft targets [B, K].

        Flip, RandAugment, jitter, mix, normalise, erase, shuffle. The order is timm's: mixing sees pixels, erasing sees
        normalised values. Mixing and erasing use the global generators, once per batch; but with `mix_per` "batch"
        mixing uses `batch_seed`, which is the same for all parts of a global batch.
        """
        assert self.mix_per == "device_batch" or batch_seed is not None
        images = self.apply(images, params)
        mixed, targets = mixing.mix(
            images,
            labels,
            num_classes=num_classes,
            mixup=self.mixup,
            cutmix=self.cutmix,
            probability=self.mix_probability,
            switch=self.mix_switch,
            seed=batch_seed if self.mix_per == "batch" else None,
        )
        normalised = self._normalise(mixed)
        if self.erase > 0:
            normalised = mixing.erase(normalised, probability=self.erase, mode=self.erase_mode)
        return self._shuffled(normalised), targets

    def apply(self, images: Tensor, params: AugmentParams) -> Tensor:
        """Flipped, with RandAugment's operations and jittered colours: uint8 [B, 3, S, S] to the same."""
        if params.flip.any():
            images = flipped(images, params.flip)
        if params.rand_augment is not None and self._rand_augment is not None:
            images = self._rand_augment(images, params.rand_augment)
        if params.color_jitter is not None and self._color_jitter is not None:
            images = self._color_jitter(images, params.color_jitter)
        return images

    def eval_batch(self, images: Tensor) -> Tensor:
        """Normalised float32 images [B, 3, S, S] from uint8, shuffled where training's are."""
        return self._shuffled(self._normalise(images.float()))

    def check_image_size(self, image_size: int) -> None:
        """See that images of S pixels a side can be shuffled.

        Raises:
            ValueError: they cannot.
        """
        self._shuffle(image_size)

    def _shuffled(self, images: Tensor) -> Tensor:
        shuffle = self._shuffle(images.shape[-1])
        return images if shuffle is None else shuffle(images)

    def _shuffle(self, image_size: int) -> Shuffle | None:
        if self.shuffle == "none":
            return None
        return _shuffle(self.shuffle, self.shuffle_patch, self.shuffle_seed, image_size)

    def _normalise(self, images: Tensor) -> Tensor:
        return (images - _channels(self.mean, images.device)) / _channels(self.std, images.device)

    # ---- parts

    def _short_side(self, widths: Integers, heights: Integers, size: int) -> tuple[Integers, Integers]:
        """Width and height of each image with its short side at `size`."""
        short, long = np.minimum(widths, heights), np.maximum(widths, heights)
        if (
            self.eval_rounding == "big_vision"
        ):  # in float32, as there: it decides where the product is half a pixel
            factor = np.float32(size) / short.astype(np.float32)
            longer = np.rint(long.astype(np.float32) * factor).astype(np.int64)
        else:
            longer = size * long // short
        upright = widths <= heights
        return np.where(upright, size, longer), np.where(upright, longer, size)

    @cached_property
    def _rand_augment(self) -> RandAugment | None:
        if self.rand_augment is None:
            return None
        interpolation = self.interpolation if self.interpolation in ("bicubic", "random") else "bilinear"
        return RandAugment(self.rand_augment, interpolation=interpolation, mean=self.mean)

    @cached_property
    def _color_jitter(self) -> ColorJitter | None:
        return ColorJitter(self.color_jitter) if self.color_jitter else None


def _resized_boxes(boxes: Boxes, size: int, filters: Integers) -> Crops:
    """Boxes resized to the whole of the crop."""
    left, top, width, height = boxes
    full, zero = np.full_like(width, size), np.zeros_like(width)
    return Crops(
        left=left,
        top=top,
        width=width,
        height=height,
        to_width=full,
        to_height=full,
        x=zero,
        y=zero,
        filter=filters,
    )


def _whole_images(
    widths: Integers,
    heights: Integers,
    to_width: Integers,
    to_height: Integers,
    x: Integers,
    y: Integers,
    filters: Integers,
) -> Crops:
    zero = np.zeros_like(widths)
    return Crops(
        left=zero,
        top=zero,
        width=widths,
        height=heights,
        to_width=to_width,
        to_height=to_height,
        x=x,
        y=y,
        filter=filters,
    )


@lru_cache(maxsize=8)  # every batch asks for the same
def _shuffle(kind: Literal["patches", "pixels"], patch_size: int, seed: int, image_size: int) -> Shuffle:
    return Shuffle(kind=kind, patch_size=patch_size, seed=seed, image_size=image_size)


def _one_of(name: str, value: str, *allowed: str) -> None:
    if value not in allowed:
        raise ValueError(f"augment.{name} is {value!r}; choose one of {', '.join(allowed)}.")


def _channels(fractions: list[float], device: torch.device) -> Tensor:
    """[3, 1, 1] in grey levels; by `full`, since a copy from the host would make it wait for the device."""
    return torch.cat([torch.full((1, 1, 1), 255 * fraction, device=device) for fraction in fractions])
