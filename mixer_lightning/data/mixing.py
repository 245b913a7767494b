"""mixup and CutMix: two images, and their labels, in one.

Legend: B images of the batch, K classes, S side of an image.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor


def mix(
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    mixup: float,
    cutmix: float,
    probability: float,
    switch: float,
    seed: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Images [B, 3, S, S] as float32 and soft targets [B, K], each image mixed with its predecessor in the batch.

    Labels are [B], or [B, L] where images have several (unused places -1): their targets hold several ones.

    mixup (arXiv 1710.09412): x <- lam x_i + (1 - lam) x_j with lam ~ Beta(mixup, mixup).
    CutMix (arXiv 1905.04899): a box of x_j is pasted into x_i, its area 1 - lam with lam ~ Beta(cutmix, cutmix);
    the targets use the area that remains after clipping at the border.
    Both: y <- lam y_i + (1 - lam) y_j.

    One lam and one choice per batch (timm/data/mixup.py, mode "batch"): mixing happens with `probability`; where
    both strengths are positive, CutMix is used with probability `switch`. A strength of 0 turns its method off.
    The partner j is i - 1 (the batch rolled by one), so any batch size works; a batch of one image is its own
    partner and leaves unchanged. timm uses the reversed batch, which mixes the middle image of an odd batch with
    itself. Unlike timm's loader, the mixture is not rounded back to whole grey levels.

    big_vision also samples lam ~ Beta(a, a) and then uses max(lam, 1 - lam). With a rolled batch that changes no
    statistics: weights (1 - lam, lam) on (x_i, x_i-1) are weights (lam, 1 - lam) on (x_j, x_j+1) with j = i - 1, the
    same set of mixtures with the successor as partner instead of the predecessor, and the order in a batch is random.

    Samples from NumPy's global generator; with a `seed`, from one of its own: parts of a global batch that are given
    the same seed share method, lam and box.
    """
    targets = targets_of(labels, num_classes=num_classes)
    images = images.float()
    random: Any = np.random if seed is None else np.random.RandomState(seed % 2**32)
    if (mixup <= 0 and cutmix <= 0) or random.rand() >= probability:
        return images, targets
    if cutmix > 0 and (mixup <= 0 or random.rand() < switch):
        images, lam = _cutmix(images, lam=float(random.beta(cutmix, cutmix)), random=random)
    else:
        lam = float(random.beta(mixup, mixup))
        images = lam * images + (1 - lam) * images.roll(1, dims=0)
    return images, lam * targets + (1 - lam) * targets.roll(1, dims=0)


def targets_of(labels: Tensor, *, num_classes: int) -> Tensor:
    """Labels int64 [B] or [B, L] (unused places -1) as ones in zeros, float32 [B, K]."""
    several = labels.view(len(labels), -1) + 1  # column 0 collects unused places
    targets = torch.zeros(len(labels), num_classes + 1, device=labels.device)
    return targets.scatter_(1, several, 1.0)[:, 1:]


def _cutmix(images: Tensor, *, lam: float, random: Any) -> tuple[Tensor, float]:
    """The batch with a box of each predecessor pasted in, and the share of its own area each image keeps."""
    height, width = images.shape[-2:]
    top, bottom, left, right = box(height=height, width=width, lam=lam, random=random)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images.roll(1, dims=0)[:, :, top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def box(*, height: int, width: int, lam: float, random: Any = np.random) -> tuple[int, int, int, int]:
    """top, bottom, left, right of a box of area (1 - lam) around a uniform centre, clipped at the border.

    As far on either side of the centre, so that an odd length loses a pixel: CutMix's own code (clovaai/CutMix-PyTorch,
    train.py, rand_bbox) and the timm 0.5 of ConvMixer; later releases of timm keep it.
    """
    ratio = math.sqrt(1 - lam)
    box_height, box_width = int(height * ratio), int(width * ratio)
    row, column = random.randint(height), random.randint(width)
    top, bottom = max(row - box_height // 2, 0), min(row + box_height // 2, height)
    left, right = max(column - box_width // 2, 0), min(column + box_width // 2, width)
    return top, bottom, left, right


def erase(images: Tensor, *, probability: float, mode: str) -> Tensor:
    """Images [B, 3, S, S], already normalised, each with one rectangle erased with the given probability.

    Random erasing (arXiv 1708.04896). `mode` "pixel", as in timm/data/random_erasing.py: area uniform in [.02, 1/3] of
    the image, aspect ratio log-uniform in [.3, 1/.3], filled with standard normal noise. "const", as in torchvision's
    RandomErasing: area in [.02, .33], aspect in [.3, 3.3], filled with 0 (the mean colour). The position is uniform; a
    rectangle that does not fit is sampled again, at most ten times.

    Shapes come from torch's CPU generator, so they do not depend on the device; noise from the device's generator.
    """
    batch, _, height, width = images.shape
    chosen = torch.rand(batch) < probability  # [B]
    largest, longest = (1 / 3, 1 / 0.3) if mode == "pixel" else (0.33, 3.3)
    area = torch.empty(10, batch).uniform_(0.02, largest) * (height * width)  # ten tries for each image
    aspect = torch.empty(10, batch).uniform_(math.log(0.3), math.log(longest)).exp()
    heights, widths = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (heights < height) & (widths < width)
    first = fits.int().argmax(dim=0, keepdim=True)  # [1, B], the first try that fits
    chosen &= fits.any(dim=0)
    h, w = heights.gather(0, first)[0], widths.gather(0, first)[0]  # [B]
    top = (torch.rand(batch) * (height - h + 1)).long()
    left = (torch.rand(batch) * (width - w + 1)).long()

    boxes = torch.stack([torch.arange(batch), top, left, top + h, left + w])[
        :, chosen
    ]  # [5, E]: E images to erase in
    index, top, left, bottom, right = boxes.to(images.device, non_blocking=True)
    rows = torch.arange(height, device=images.device).view(1, 1, -1, 1)
    columns = torch.arange(width, device=images.device).view(1, 1, 1, -1)
    top, left, bottom, right = (edge.view(-1, 1, 1, 1) for edge in (top, left, bottom, right))
    inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)  # [E, 1, H, W]
    before = images[index]
    fill = torch.randn_like(before) if mode == "pixel" else torch.zeros_like(before)
    return images.index_copy(0, index, torch.where(inside, fill, before))
