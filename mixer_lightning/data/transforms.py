"""From a decoded image to the model's input: one augmentation recipe, four methods.

Legend: B images of a batch, K classes, S side of the model's input in pixels.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mixer_lightning.data import mixing

RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "area": Image.Resampling.BOX,
}

ImageOperation = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What happens to images between the source and the model. The defaults augment nothing.

    In a worker, per image, drawing from the global generators of `random`, NumPy and torch:
      crop             "random_resized": a random part of area share `crop_scale` and aspect ratio `crop_ratio`,
                       resized to S (arXiv 1409.4842); "resize_random": short side to S / eval_crop, then a random
                       S x S part; "pad": short side to S, `crop_padding` black pixels on each side, then a random
                       S x S part; "none": the evaluation's view
      interpolation    of that resize and of RandAugment's geometry; "random" draws bilinear or bicubic per image
      flip             probability of a horizontal flip
      rand_augment     timm's notation "rand-m9-mstd0.5-inc1" (magnitude m, n operations, probability p of each,
                       default .5; magnitudes above 10 count as 10 unless "mmax" raises that limit), or
                       "torchvision-n2-m12" for torchvision's operations (n operations of magnitude m out of 30);
                       null for none
      color_jitter     brightness, contrast and saturation each times a factor in 1 +- color_jitter

    On the device, per batch (data/mixing.py):
      mixup, cutmix    Beta parameters, 0 for off; `mix_probability` of either; `mix_switch` of CutMix if both are on
      mean, std        per channel, for values in [0, 1]
      erase            probability of erasing a rectangle after normalisation, with noise ("pixel") or 0 ("const")

    Evaluation: "short_side": short side to floor(S / eval_crop), "square": both sides to it; the S x S centre of that.

    All resizing is Pillow's, hence antialiased.
    """

    crop: Literal["random_resized", "resize_random", "pad", "none"] = "none"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (0.75, 1.3333333333333333)
    crop_padding: int = 0
    interpolation: Literal["bilinear", "bicubic", "random"] = "bilinear"
    flip: float = 0.0
    rand_augment: str | None = None
    color_jitter: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_probability: float = 1.0
    mix_switch: float = 0.5
    mean: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    std: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    erase: float = 0.0
    erase_mode: Literal["pixel", "const"] = "pixel"
    eval_crop: float = 1.0
    eval_resize: Literal["short_side", "square"] = "short_side"
    eval_interpolation: Literal["bilinear", "bicubic", "area"] = "bilinear"

    def __post_init__(self) -> None:
        _one_of("crop", self.crop, "random_resized", "resize_random", "pad", "none")
        _one_of("interpolation", self.interpolation, "bilinear", "bicubic", "random")
        _one_of("erase_mode", self.erase_mode, "pixel", "const")
        _one_of("eval_resize", self.eval_resize, "short_side", "square")
        _one_of("eval_interpolation", self.eval_interpolation, *RESAMPLING)
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
        if not 0 < self.eval_crop <= 1:
            raise ValueError(f"augment.eval_crop must lie in (0, 1]; it is {self.eval_crop}.")
        if self.rand_augment is not None:
            _check_rand_augment(self.rand_augment)

    # ---- one image, in a worker

    def train_image(self, image: Image.Image, image_size: int) -> Tensor:
        """A randomly augmented uint8 tensor [3, S, S] from an RGB image of any size."""
        image = self._train_crop(image, image_size)
        if self.flip > 0 and random.random() < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self._rand_augment is not None:
            image = self._rand_augment(image)
        if self._color_jitter is not None:
            image = self._color_jitter(image)
        return _tensor(image)

    def eval_image(self, image: Image.Image, image_size: int) -> Tensor:
        """The evaluation's view of an RGB image of any size: uint8 tensor [3, S, S]."""
        return _tensor(self._eval_crop(image, image_size))

    # ---- a batch, on its device

    def train_batch(self, images: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        """Mix, normalise, erase: uint8 [B, 3, S, S] and labels int64 [B] to float32 images and soft targets [B, K].

        The order is timm's: mixing sees pixels, erasing sees normalised values.
        """
        mixed, targets = mixing.mix(
            images,
            labels,
            num_classes=num_classes,
            mixup=self.mixup,
            cutmix=self.cutmix,
            probability=self.mix_probability,
            switch=self.mix_switch,
        )
        normalised = self._normalise(mixed)
        if self.erase > 0:
            normalised = mixing.erase(normalised, probability=self.erase, mode=self.erase_mode)
        return normalised, targets

    def eval_batch(self, images: Tensor) -> Tensor:
        """Normalised float32 images [B, 3, S, S] from uint8."""
        return self._normalise(images.float())

    def _normalise(self, images: Tensor) -> Tensor:
        return (images - _channels(self.mean, images.device)) / _channels(self.std, images.device)

    # ---- parts

    def _train_crop(self, image: Image.Image, size: int) -> Image.Image:
        if self.crop == "none":
            return self._eval_crop(image, size)
        if self.crop == "random_resized":
            return self._random_resized_crop(image, size)
        if self.crop == "pad":
            image = _short_side(image, size, self._draw_interpolation())
            image = ImageOps.expand(image, self.crop_padding) if self.crop_padding else image
        else:
            image = _short_side(image, math.floor(size / self.eval_crop), self._draw_interpolation())
        left, top = random.randint(0, image.width - size), random.randint(0, image.height - size)
        return _crop(image, left, top, size)

    def _random_resized_crop(self, image: Image.Image, size: int) -> Image.Image:
        """As timm's RandomResizedCropAndInterpolation: ten tries, then the largest centred part of allowed aspect."""
        width, height = image.size
        low, high = self.crop_ratio
        for _ in range(10):
            area = random.uniform(*self.crop_scale) * width * height
            aspect = math.exp(random.uniform(math.log(low), math.log(high)))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                top, left = random.randint(0, height - h), random.randint(0, width - w)
                break
        else:
            w, h = min(width, round(height * high)), min(height, round(width / low))
            left, top = (width - w) // 2, (height - h) // 2
        if (w, h) != (width, height):
            image = image.crop((left, top, left + w, top + h))
        return _resize(image, size, size, self._draw_interpolation())

    def _eval_crop(self, image: Image.Image, size: int) -> Image.Image:
        resampling = RESAMPLING[self.eval_interpolation]
        resized = math.floor(size / self.eval_crop)
        if self.eval_resize == "square":
            image = _resize(image, resized, resized, resampling)
        else:
            image = _short_side(image, resized, resampling)
        return _crop(image, round((image.width - size) / 2), round((image.height - size) / 2), size)

    def _draw_interpolation(self) -> Image.Resampling:
        if self.interpolation == "random":
            return random.choice((Image.Resampling.BILINEAR, Image.Resampling.BICUBIC))
        return RESAMPLING[self.interpolation]

    @cached_property
    def _rand_augment(self) -> ImageOperation | None:
        if self.rand_augment is None:
            return None
        if match := _TORCHVISION.fullmatch(self.rand_augment):
            from torchvision.transforms import RandAugment

            operations: ImageOperation = RandAugment(num_ops=int(match["n"]), magnitude=int(match["m"]))
            return operations
        from timm.data.auto_augment import rand_augment_transform

        # Pixels moved in from outside are filled with the mean colour, as timm does.
        options: dict[str, object] = {
            "img_mean": tuple(min(255, round(255 * channel)) for channel in self.mean)
        }
        if self.interpolation != "random":
            options["interpolation"] = RESAMPLING[self.interpolation]
        timm_operations: ImageOperation = rand_augment_transform(self.rand_augment, options)
        return timm_operations

    @cached_property
    def _color_jitter(self) -> ImageOperation | None:
        if self.color_jitter == 0:
            return None
        from torchvision.transforms import ColorJitter

        strength = self.color_jitter
        jitter: ImageOperation = ColorJitter(brightness=strength, contrast=strength, saturation=strength)
        return jitter


_TORCHVISION = re.compile(r"torchvision-n(?P<n>\d+)-m(?P<m>\d+)")
_TIMM = re.compile(r"rand(-(m\d+|n\d+|p[01](\.\d+)?|mstd\d+(\.\d+)?|mmax\d+|inc[01]|t(weights|3aw?)))*")


def _check_rand_augment(text: str) -> None:
    if _TIMM.fullmatch(text):
        return
    match = _TORCHVISION.fullmatch(text)
    if match is None:
        raise ValueError(
            f"augment.rand_augment: cannot read {text!r}. Write timm's notation, as in rand-m9-mstd0.5-inc1, "
            "or torchvision's operations as torchvision-n2-m12."
        )
    if int(match["m"]) > 30:
        raise ValueError(f"augment.rand_augment: torchvision's magnitudes end at 30; {text!r} asks for more.")


def _one_of(name: str, value: str, *allowed: str) -> None:
    if value not in allowed:
        raise ValueError(f"augment.{name} is {value!r}; choose one of {', '.join(allowed)}.")


def _short_side(image: Image.Image, size: int, resampling: Image.Resampling) -> Image.Image:
    """The image with its short side at `size`; the long side rounds down, as in torchvision."""
    short, long = sorted(image.size)
    longer = size * long // short
    width, height = (size, longer) if image.width <= image.height else (longer, size)
    return _resize(image, width, height, resampling)


def _resize(image: Image.Image, width: int, height: int, resampling: Image.Resampling) -> Image.Image:
    return image if image.size == (width, height) else image.resize((width, height), resampling)


def _crop(image: Image.Image, left: int, top: int, size: int) -> Image.Image:
    return image if image.size == (size, size) else image.crop((left, top, left + size, top + size))


def _channels(fractions: list[float], device: torch.device) -> Tensor:
    """[3, 1, 1] in grey levels; by `full`, since a copy from the host would make it wait for the device."""
    return torch.cat([torch.full((1, 1, 1), 255 * fraction, device=device) for fraction in fractions])


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()  # [S, S, 3] -> [3, S, S]
