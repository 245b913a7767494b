"""BiT, the ResNets of "Big Transfer" (Kolesnikov et al., arXiv 1912.11370), in the sizes that timm has no name for.

Pre-activation bottlenecks, GroupNorm of 32 groups, weight standardisation: timm's ResNetV2 class with the arguments of
its `resnetv2_*_bit`. Units of each depth as in google-research/big_vision, big_vision/models/bit.py.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from mixer_lightning.models.baselines import as_backbone
from mixer_lightning.ranges import BelowOne, NonNegativeInt, PositiveInt, check_ranges

#: Layers -> bottleneck units in each of four stages.
UNITS = {50: [3, 4, 6, 3], 101: [3, 4, 23, 3], 152: [3, 8, 36, 3], 200: [3, 24, 36, 3]}


@check_ranges
def big_transfer(
    *,
    depth: PositiveInt,
    width: PositiveInt,
    num_classes: NonNegativeInt,
    image_size: PositiveInt,
    stochastic_depth: BelowOne = 0.0,
    head_bias: float = 0.0,
) -> nn.Module:
    """BiT-R<depth>x<width> with new weights and with all that protocol.Backbone asks for.

    Args:
        depth: layers: 50, 101, 152 or 200.
        width: multiplies the channels of the stem and of all stages.
        num_classes: outputs of the head.
        image_size: side in pixels; weights work at any.
        stochastic_depth: of the last block's branch; 0 in the first.
        head_bias: added to the initial bias of the head, which is zero.

    Raises:
        ValueError: there is no such depth.
    """
    from timm.layers import StdConv2d  # late: timm brings wandb along where that is installed
    from timm.models.resnetv2 import ResNetV2

    if depth not in UNITS:
        raise ValueError(f"depth {depth} is none of BiT's: {', '.join(map(str, UNITS))}")
    model = ResNetV2(
        UNITS[depth],
        num_classes=num_classes,
        width_factor=width,
        stem_type="fixed",
        conv_layer=partial(StdConv2d, eps=1e-8),
        drop_path_rate=stochastic_depth,
    )
    return as_backbone(model, head_name="head.fc", image_size=image_size, head_bias=head_bias)
