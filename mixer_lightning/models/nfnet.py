"""NFNet-F: residual networks without normalisation (Brock et al., arXiv 2102.06171), made of timm's blocks.

The sizes are those of google-deepmind/deepmind-research, nfnets/nfnet.py and base.py, of which timm's configurations
cannot say two: a stem of 16, 32, 64 and half the first stage's channels, and bottlenecks that groups do not divide.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from mixer_lightning.models.baselines import as_backbone
from mixer_lightning.ranges import BelowOne, NonNegativeInt, PositiveInt, check_ranges

#: Channels of the first three convolutions of the stem; the fourth makes half the channels of the first stage.
STEM = (16, 32, 64)


@check_ranges
def nfnet(
    *,
    num_blocks: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt],
    widths: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt],
    group_width: PositiveInt,
    dropout: BelowOne,
    num_classes: NonNegativeInt,
    image_size: PositiveInt,
    stochastic_depth: BelowOne = 0.0,
    head_bias: float = 0.0,
) -> nn.Module:
    """timm's NormFreeNet of these sizes, with all that protocol.Backbone asks for; trained weights fit any image size.

    Args:
        num_blocks: residual blocks of the four stages.
        widths: channels of the four stages. Bottlenecks are half as wide, the last convolution is twice as wide.
        group_width: channels of a group of the 3x3 convolutions; a bottleneck that is not a multiple keeps its width in
            fewer and wider groups, which gives the paper's count for F4+ (the released code makes it narrower).
        dropout: of the features, before the head.
        num_classes: outputs of the head.
        image_size: side in pixels.
        stochastic_depth: block i of n drops a sample's branch with probability i / n of this, without rescaling others.
        head_bias: what the bias of the head starts from.

    Raises:
        ValueError: a bottleneck is narrower than a group, or its groups are not equal.
    """
    from timm.layers import DropPath  # late: timm brings wandb along where that is installed
    from timm.models.nfnet import NfCfg, NormFreeNet

    for width in widths:
        bottleneck = width // 2
        if width % 2 or bottleneck < group_width or bottleneck % (bottleneck // group_width):
            raise ValueError(
                f"widths {width}: half of it does not divide into groups of {group_width} or wider"
            )
    config = NfCfg(
        depths=tuple(num_blocks),
        channels=tuple(widths),
        stem_type="deep_quad",
        stem_chs=widths[0] // 2,
        group_size=group_width,
        bottle_ratio=0.5,
        extra_conv=True,
        gamma_in_act=True,
        same_padding=True,
        skipinit=True,
        num_features=2 * widths[-1],
        ch_div=1,
        act_layer="gelu",
        attn_layer="se",
        attn_kwargs={"rd_ratio": 0.5},
    )
    model = NormFreeNet(config, num_classes=num_classes, drop_rate=dropout, drop_path_rate=stochastic_depth)
    dims = (3, *STEM, widths[0] // 2)
    for i, stride in enumerate((2, 1, 1, 2)):
        setattr(model.stem, f"conv{i + 1}", _conv(dims[i], dims[i + 1], 3, stride=stride))
    blocks = [block for stage in model.stages for block in stage]
    for index, block in enumerate(blocks):
        out_dim = block.conv3.out_channels
        if out_dim // 2 % group_width:
            _keep_bottleneck(block, width=out_dim // 2, groups=out_dim // 2 // group_width)
        if isinstance(block.drop_path, DropPath):
            block.drop_path.drop_prob = index / len(blocks) * stochastic_depth
            block.drop_path.scale_by_keep = False
    return as_backbone(model, head_name="head.fc", image_size=image_size, head_bias=head_bias)


def _keep_bottleneck(block: Any, *, width: int, groups: int) -> None:
    """Gives a NormFreeBlock convolutions of `width` channels inside, the 3x3 ones in `groups`."""
    stride = block.conv2.stride[0]
    block.conv1 = _conv(block.conv1.in_channels, width, 1)
    block.conv2 = _conv(width, width, 3, stride=stride, groups=groups)
    block.conv2b = _conv(width, width, 3, groups=groups)
    block.conv3 = _conv(width, block.conv3.out_channels, 1)


def _conv(dim: int, out_dim: int, kernel_size: int, *, stride: int = 1, groups: int = 1) -> nn.Module:
    """A convolution of standardised weights, as NormFreeNet makes and initialises them."""
    from timm.layers import ScaledStdConv2dSame

    conv: nn.Conv2d = ScaledStdConv2dSame(dim, out_dim, kernel_size, stride=stride, groups=groups, eps=1e-5)
    nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="linear")
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv
