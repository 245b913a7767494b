"""How near the pixels of our crops are to Pillow's."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from mixer_lightning.data import decode
from mixer_lightning.data.crops import Crops, Integers
from mixer_lightning.data.stateless_random import sample_keys
from mixer_lightning.data.transforms import Augment
from mixer_lightning.studies.pipelines import IMAGE_SIZE

Interpolation = Literal["bilinear", "bicubic"]
INTERPOLATIONS: tuple[Interpolation, ...] = ("bilinear", "bicubic")


def fidelity(files: Sequence[Path], *, interpolation: Interpolation) -> dict[str, float]:
    """Our crops against Pillow's full decode, crop and antialiased resize of the same random box of each file.

    PSNR in decibels (255 grey levels; equal images count as 100) and mean absolute difference in grey levels.
    """
    augment = Augment(crop="random_resized", interpolation=interpolation)
    keys = sample_keys(0, [(0, i, 0) for i in range(len(files))])
    psnr, difference = [], []
    for i, path in enumerate(files):
        seen: list[Crops] = []

        def crops_of(
            _: Integers, widths: Integers, heights: Integers, i: int = i, seen: list[Crops] = seen
        ) -> Crops:
            seen.append(augment.train_crops(keys[i : i + 1], widths, heights, IMAGE_SIZE))
            return seen[-1]

        ours = torch.zeros(3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
        if decode.decode_crops([path.read_bytes()], crops_of, [ours]):
            raise ValueError(f"{path} cannot be decoded")
        left, top = int(seen[0].left[0]), int(seen[0].top[0])
        box = (left, top, left + int(seen[0].width[0]), top + int(seen[0].height[0]))
        resampling = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[
            interpolation
        ]
        with Image.open(path, formats=["JPEG"]) as image:
            theirs = image.convert("RGB").crop(box).resize((IMAGE_SIZE, IMAGE_SIZE), resampling)
        apart = ours.permute(1, 2, 0).numpy().astype(np.float64) - np.asarray(theirs)
        psnr.append(10 * math.log10(255**2 / max(float((apart**2).mean()), 255**2 / 1e10)))
        difference.append(float(np.abs(apart).mean()))
    return {
        "psnr_mean": statistics.fmean(psnr),
        "psnr_min": min(psnr),
        "difference_mean": statistics.fmean(difference),
        "difference_max": max(difference),
    }
