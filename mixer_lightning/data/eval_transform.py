"""One image as a network sees it in evaluation, for programs that bring their own images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from mixer_lightning.data.crops import crop_one
from mixer_lightning.data.decode import pixels_of
from mixer_lightning.data.transforms import Augment


@dataclass(frozen=True)
class EvalTransform:
    """A PIL image of any size and mode -> float32 [3, S, S], resized, cropped and normalised as in evaluation.

    Can be pickled, and so be the `transform` of a torchvision data set.
    """

    augment: Augment
    image_size: int  # S, in pixels

    def __post_init__(self) -> None:
        self.augment.check_image_size(self.image_size)

    def __call__(self, image: Image.Image) -> Tensor:
        """[3, S, S]; TypeError for anything but a PIL image."""
        if not isinstance(image, Image.Image):
            raise TypeError(
                f"a PIL image is expected, such as PIL.Image.open(path), found {type(image).__name__}"
            )
        if self.augment.exif_orientation:
            image = ImageOps.exif_transpose(image)
        pixels = pixels_of(image)  # [3, H, W]
        height, width = pixels.shape[1:]
        crops = self.augment.eval_crops(np.array([width]), np.array([height]), self.image_size)
        return self.augment.eval_batch(crop_one(pixels, crops, 0, self.image_size)[None])[0]
