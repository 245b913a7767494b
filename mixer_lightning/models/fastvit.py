"""FastViT: RepMixer blocks of large kernels, as it is trained (Vasu et al., arXiv 2303.14189), from timm."""

from __future__ import annotations

from typing import Any

from torch import nn

from mixer_lightning.models.baselines import timm_backbone
from mixer_lightning.ranges import BelowOne, NonNegativeInt, PositiveInt


def fastvit(
    *,
    timm_name: str,
    num_classes: NonNegativeInt,
    image_size: PositiveInt,
    stochastic_depth: BelowOne = 0.0,
    head_bias: float = 0.0,
) -> nn.Module:
    """`timm_backbone` in contiguous memory.

    Training timm's FastViT in channels_last on a CPU corrupts the heap and ends the process (torch 2.15, timm 1.0.31;
    plain timm does so, too), and does not in contiguous memory.
    """
    model: Any = timm_backbone(
        timm_name=timm_name,
        num_classes=num_classes,
        image_size=image_size,
        stochastic_depth=stochastic_depth,
        head_bias=head_bias,
    )
    model.channels_last = False
    assert isinstance(model, nn.Module)
    return model
