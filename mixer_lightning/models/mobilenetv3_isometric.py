"""Isometric MobileNetV3: one resolution from the first block to the last (Sandler, Baccash, Zhmoginov and Howard,
arXiv 1909.03205), made of timm's blocks.

UNVERIFIED: the paper's definition could not be had. Here it is the list of blocks of MobileNetV3 (arXiv 1905.02244,
table 1; tensorflow/models, research/slim/nets/mobilenet/mobilenet_v3.py) with every stride 1, behind a convolution that
cuts the image into patches, all widths multiplied. What is published ("Isotropic MobileNetv3", 20 M parameters) stands
in the ImageNet table of arXiv 2201.09792.
"""

from __future__ import annotations

import functools
from typing import Literal

from torch import nn

from mixer_lightning.models.baselines import as_backbone
from mixer_lightning.models.patches import grid_size
from mixer_lightning.ranges import BelowOne, NonNegativeInt, PositiveFloat, PositiveInt, check_ranges

#: In timm's notation: r repeats, k kernel, s stride, e expansion, c channels, se squeeze, nre ReLU (else `activation`).
LARGE = [
    ["ds_r1_k3_s1_e1_c16_nre"],
    ["ir_r1_k3_s1_e4_c24_nre", "ir_r1_k3_s1_e3_c24_nre"],
    ["ir_r3_k5_s1_e3_c40_se0.25_nre"],
    ["ir_r1_k3_s1_e6_c80", "ir_r1_k3_s1_e2.5_c80", "ir_r2_k3_s1_e2.3_c80"],
    ["ir_r2_k3_s1_e6_c112_se0.25"],
    ["ir_r3_k5_s1_e6_c160_se0.25"],
    ["cn_r1_k1_s1_c960"],
]


@check_ranges
def mobilenetv3_isometric(
    *,
    variant: Literal["large", "minimalistic"],
    patch_size: PositiveInt,
    width: PositiveFloat,
    num_classes: NonNegativeInt,
    image_size: PositiveInt,
    stochastic_depth: BelowOne = 0.0,
    head_bias: float = 0.0,
) -> nn.Module:
    """timm's MobileNetV3 class at one resolution, with all that protocol.Backbone asks for.

    Args:
        variant: `large`, or `minimalistic`: the same list without squeeze-and-excitation, all kernels 3x3, all
            activations ReLU (which is what the ImageNet table of arXiv 2201.09792 prints for these models).
        patch_size: side in pixels of a patch.
        width: multiplies the channels of all blocks and of the hidden layer of the head.
        num_classes: outputs of the head.
        image_size: side in pixels, a multiple of patch_size; trained weights work at every multiple.
        stochastic_depth: block i of n drops a sample's branch with probability i / n of this.
        head_bias: added to the initial bias of the head, which is zero.

    Raises:
        ValueError: patches do not fill the image, or there is no such variant.
    """
    from timm.models._efficientnet_blocks import (
        SqueezeExcite,  # late: timm brings wandb along where that is installed
    )
    from timm.models._efficientnet_builder import decode_arch_def, round_channels
    from timm.models.mobilenetv3 import MobileNetV3

    if variant not in ("large", "minimalistic"):
        raise ValueError(f"variant must be large or minimalistic, found {variant!r}")
    grid_size(image_size=image_size, patch_size=patch_size)  # raises where patches do not fill the image
    round_width = functools.partial(round_channels, multiplier=width)
    blocks = LARGE if variant == "large" else [[minimalistic(block) for block in stage] for stage in LARGE]
    model = MobileNetV3(
        decode_arch_def(blocks),
        num_classes=num_classes,
        stem_size=16,
        num_features=round_width(1280),
        round_chs_fn=round_width,
        act_layer=nn.Hardswish if variant == "large" else nn.ReLU,
        se_layer=functools.partial(
            SqueezeExcite, gate_layer="hard_sigmoid", force_act_layer=nn.ReLU, rd_round_fn=round_channels
        ),
        drop_path_rate=stochastic_depth,
    )
    stem_dim = model.conv_stem.out_channels
    model.conv_stem = nn.Conv2d(3, stem_dim, kernel_size=patch_size, stride=patch_size, bias=False)
    nn.init.kaiming_normal_(model.conv_stem.weight, mode="fan_out")  # as timm all the others
    return as_backbone(model, head_name="classifier", image_size=image_size, head_bias=head_bias)


def minimalistic(block: str) -> str:
    """The block with a 3x3 kernel (1x1 ones stay) and without squeeze-and-excitation."""
    return block.replace("_k5", "_k3").replace("_se0.25", "")
