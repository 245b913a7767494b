"""EfficientNets of any width and depth (Tan and Le, arXiv 1905.11946), made of timm's blocks.

For those that only google-research/google-research, meta_pseudo_labels/modeling.py names. Padding and BatchNorm are
TensorFlow's.
"""

from __future__ import annotations

import functools

from torch import nn

from mixer_lightning.models.baselines import as_backbone
from mixer_lightning.ranges import BelowOne, NonNegativeInt, PositiveFloat, PositiveInt, check_ranges

#: EfficientNet-B0 in timm's notation: r repeats, k kernel, s stride, e expansion, c channels, se squeeze.
B0 = [
    ["ds_r1_k3_s1_e1_c16_se0.25"],
    ["ir_r2_k3_s2_e6_c24_se0.25"],
    ["ir_r2_k5_s2_e6_c40_se0.25"],
    ["ir_r3_k3_s2_e6_c80_se0.25"],
    ["ir_r3_k5_s1_e6_c112_se0.25"],
    ["ir_r4_k5_s2_e6_c192_se0.25"],
    ["ir_r1_k3_s1_e6_c320_se0.25"],
]


@check_ranges
def efficientnet(
    *,
    width: PositiveFloat,
    depth: PositiveFloat,
    dropout: BelowOne,
    num_classes: NonNegativeInt,
    image_size: PositiveInt,
    stochastic_depth: BelowOne = 0.0,
    head_bias: float = 0.0,
) -> nn.Module:
    """timm's EfficientNet of these factors, with all that protocol.Backbone asks for; its weights fit any image size.

    Args:
        width: multiplies the channels of B0, which are then rounded to multiples of 8.
        depth: multiplies the blocks of each stage of B0, rounded up.
        dropout: of the features, before the head.
        num_classes: outputs of the head.
        image_size: side in pixels.
        stochastic_depth: block i of n drops a sample's branch with probability i / n of this.
        head_bias: what the bias of the head starts from.
    """
    from timm.models._efficientnet_builder import (  # late: timm brings wandb along where that is installed
        BN_EPS_TF_DEFAULT,
        decode_arch_def,
        round_channels,
    )
    from timm.models.efficientnet import EfficientNet

    widened = functools.partial(round_channels, multiplier=width)
    model = EfficientNet(
        decode_arch_def(B0, depth),
        num_classes=num_classes,
        num_features=widened(1280),
        pad_type="same",
        act_layer=nn.SiLU,
        norm_layer=functools.partial(nn.BatchNorm2d, eps=BN_EPS_TF_DEFAULT, momentum=0.01),
        round_chs_fn=widened,
        drop_rate=dropout,
        drop_path_rate=stochastic_depth,
    )
    return as_backbone(model, head_name="classifier", image_size=image_size, head_bias=head_bias)
