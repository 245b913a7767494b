"""The three training losses: logits [B, K] of any floating dtype, soft targets [B, K] -> a float32 scalar.

Label smoothing s moves targets to (1 - s)·targets + s/K. It is linear, so smoothing after mixup or cutmix
(here) equals smoothing before (timm's Mixup).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

from mixer_lightning.ranges import BelowOne, NonNegativeFloat


def softmax_cross_entropy(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    label_smoothing: BelowOne = 0.0,
    class_weights: Literal["balanced"] | list[NonNegativeFloat] | None = None,
    class_counts: torch.Tensor | None = None,
) -> torch.Tensor:
    """-sum over classes of weight·targets·log softmax(logits), mean over the batch, as torch's cross_entropy.

    `class_weights` are 1 unless given; "balanced" makes them N / (K n) for a class of which `class_counts` [K] has n of
    N training images (King and Zeng, 2001; scikit-learn's), so that every class counts as much in sum.

    ConvMixer uses it with smoothing 0.1 (timm's SoftTargetCrossEntropy on smoothed targets), Mixer's
    fine-tuning without.
    """
    log_probabilities = F.log_softmax(logits.float(), dim=-1)  # [B, K]
    smoothed = _smooth(targets, label_smoothing)
    if class_weights is not None:
        smoothed = smoothed * _weights(class_weights, class_counts, logits)
    return -(smoothed * log_probabilities).sum(dim=-1).mean()


def sigmoid_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of every class, SUM over classes, mean over the batch.

    The loss of big_vision's Mixer recipe (utils.py `sigmoid_xent`; configs/mlp_mixer_i1k.py). The sum starts
    high (K·log 2 at logits 0), hence that recipe's initial head bias -6.9, about log(1/K).
    """
    per_class = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")
    return per_class.sum(dim=-1).mean()


def binary_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, *, label_smoothing: BelowOne = 0.0
) -> torch.Tensor:
    """Binary cross-entropy of every class, MEAN over classes and batch: 1/K of `sigmoid_cross_entropy`.

    The loss of the A1 procedure, with smoothing 0.1 (arXiv 2110.00476; timm loss/binary_cross_entropy.py).
    """
    return F.binary_cross_entropy_with_logits(logits.float(), _smooth(targets, label_smoothing))


def _weights(
    class_weights: Literal["balanced"] | list[float], class_counts: torch.Tensor | None, logits: torch.Tensor
) -> torch.Tensor:
    """A weight for each class, [K]; classes without training images count once."""
    num_classes = logits.shape[-1]
    if class_weights == "balanced":
        if class_counts is None:
            raise ValueError("loss.class_weights=balanced needs a number of training images for each class.")
        counts = class_counts.to(logits.device, torch.float32)
        weights = counts.sum() / (torch.count_nonzero(counts) * counts.clamp(min=1))
        return torch.where(counts > 0, weights, 1.0)
    if len(class_weights) != num_classes or min(class_weights) < 0:
        raise ValueError(
            f"loss.class_weights must be balanced, or {num_classes:,} numbers of at least 0, one for each class."
        )
    return torch.tensor(class_weights, device=logits.device)


def _smooth(targets: torch.Tensor, label_smoothing: BelowOne) -> torch.Tensor:
    if not 0 <= label_smoothing < 1:
        raise ValueError(
            f"loss.label_smoothing={label_smoothing} is not in [0, 1): it is a share of the target."
        )
    return targets.float() * (1 - label_smoothing) + label_smoothing / targets.shape[-1]
