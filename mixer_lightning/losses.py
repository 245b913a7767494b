"""The three training losses: logits [B, K] of any floating dtype, soft targets [B, K] -> a float32 scalar.

Label smoothing s moves targets to (1 - s)·targets + s/K. It is linear, so smoothing after mixup or cutmix
(here) equals smoothing before (timm's Mixup).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mixer_lightning.ranges import BelowOne


def softmax_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, *, label_smoothing: BelowOne = 0.0
) -> torch.Tensor:
    """-sum over classes of targets·log softmax(logits), mean over the batch.

    ConvMixer uses it with smoothing 0.1 (timm's SoftTargetCrossEntropy on smoothed targets), Mixer's
    fine-tuning without.
    """
    log_probabilities = F.log_softmax(logits.float(), dim=-1)  # [B, K]
    return -(_smooth(targets, label_smoothing) * log_probabilities).sum(dim=-1).mean()


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


def _smooth(targets: torch.Tensor, label_smoothing: BelowOne) -> torch.Tensor:
    if not 0 <= label_smoothing < 1:
        raise ValueError(
            f"loss.label_smoothing={label_smoothing} is not in [0, 1): it is a share of the target."
        )
    return targets.float() * (1 - label_smoothing) + label_smoothing / targets.shape[-1]
