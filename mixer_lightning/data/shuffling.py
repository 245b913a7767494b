"""Pixels in another order, the same for all images: the inputs of arXiv 2105.01601, figure 4.

Legend: B images, C channels, S side of the image, P side of a patch, both in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mixer_lightning.data.stateless_random import derive_seed, uniform

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Shuffle:
    """One fixed order of pixels.

    "patches": patches of P x P pixels in another order, and the pixels in each by one common permutation; "pixels":
    those of the whole image, so that `patch_size` has no say. Orders follow from `seed` and the numbers of patches and
    pixels alone, on every machine and for good: a checkpoint means nothing without them.
    """

    kind: Literal["patches", "pixels"]
    patch_size: int  # P
    seed: int
    image_size: int  # S

    def __post_init__(self) -> None:
        if self.kind == "patches" and self.image_size % self.patch_size:
            raise ValueError(
                f"augment.shuffle_patch: images of {self.image_size} px cannot be cut into patches of "
                f"{self.patch_size} px: give a divisor of image_size"
            )

    @cached_property
    def patch_order(self) -> Integers:
        """[(S/P)^2]: at place t, in row-major order, stands patch number patch_order[t]."""
        return permutation((self.image_size // self.patch_size) ** 2, "patches", self.seed)

    @cached_property
    def pixel_order(self) -> Integers:
        """[P^2]: at place q of each patch stands its pixel number pixel_order[q]."""
        return permutation(self.patch_size**2, "pixels of a patch", self.seed)

    @cached_property
    def order(self) -> Integers:
        """[S^2]: at place i of the image, in row-major order, stands pixel number order[i]."""
        if self.kind == "pixels":
            return permutation(self.image_size**2, "pixels", self.seed)
        side, patch = self.image_size // self.patch_size, self.patch_size
        numbers = np.arange(self.image_size**2).reshape(side, patch, side, patch)
        patches = numbers.transpose(0, 2, 1, 3).reshape(side**2, patch**2)  # [patch, pixel]
        shuffled = patches[self.patch_order][:, self.pixel_order].reshape(side, side, patch, patch)
        return shuffled.transpose(0, 2, 1, 3).reshape(-1)

    def __call__(self, images: Tensor) -> Tensor:
        """Images [B, C, S, S] of any type with their pixels in this order."""
        order = torch.from_numpy(self.order).to(images.device, non_blocking=True)
        return images.flatten(2)[..., order].reshape(images.shape)


def permutation(length: int, purpose: str, seed: int) -> Integers:
    """A permutation of 0, ..., length - 1 that depends on nothing else."""
    key = np.array([derive_seed(seed, "shuffle", purpose)], np.uint64)
    return np.argsort(uniform(key, "order", length)[0], kind="stable")
