"""ConvMixer with parts exchanged: what the ablation of its paper varies (arXiv 2201.09792, table 3).

    z'_l = N(sigma(ConvDepthwise(z_{l-1}))) + z_{l-1}     (2)
    z_l  = N(sigma(ConvPointwise(z'_l)))                  (3)

The sum of (2) may be left out, or made in (3) too; N may be LayerNorm, or nothing. As published, the network is
models/convmixer.py, with the same names of tensors and the same initial numbers. What the paper's LayerNorm takes
together is UNVERIFIED: here the channels of each position, as in a Mixer.

    B images   p patch_size   h dim   K num_classes   H, W sides of the image
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from mixer_lightning.kernels.activation_norm import Sequential
from mixer_lightning.kernels.depthwise import DepthwiseConv2d
from mixer_lightning.models.convmixer import Residual
from mixer_lightning.models.patches import grid_size
from mixer_lightning.ranges import BelowOne, NonNegativeInt, PositiveInt, check_ranges

ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU}


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of each position of a map [B, h, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, h, H, W] -> the same shape."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


NORMALIZATIONS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "layer": ChannelLayerNorm,
    "none": lambda dim: nn.Identity(),
}


class AblatedConvMixer(nn.Module):
    """Normalised images [B, 3, image_size, image_size] -> logits [B, K].

    `residual` says which of the two steps of a block has a sum, `normalization` what N is.
    """

    channels_last: ClassVar[bool] = True
    head_name: ClassVar[str] = "head"

    @check_ranges
    def __init__(
        self,
        *,
        dim: PositiveInt,
        depth: PositiveInt,
        kernel_size: PositiveInt,
        patch_size: PositiveInt,
        activation: Literal["gelu", "relu"] = "gelu",
        residual: Literal["depthwise", "both", "none"] = "depthwise",
        normalization: Literal["batch", "layer", "none"] = "batch",
        num_classes: NonNegativeInt,
        image_size: PositiveInt,
        stochastic_depth: BelowOne = 0.0,
        head_bias: float = 0.0,
    ) -> None:
        super().__init__()
        grid_size(image_size=image_size, patch_size=patch_size)  # raises where patches do not fill the image
        for name, value, known in (
            ("activation", activation, ACTIVATIONS),
            ("residual", residual, ("depthwise", "both", "none")),
            ("normalization", normalization, NORMALIZATIONS),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, found {value!r}")
        if residual == "none" and stochastic_depth:
            raise ValueError("residual=none leaves no branch that stochastic_depth could drop: set it to 0")
        self.num_classes, self.image_size, self.num_features = num_classes, image_size, dim
        self.head_bias = head_bias
        self.activation = activation

        def normalised(layer: nn.Module) -> list[nn.Module]:
            """N(sigma(layer))."""
            return [layer, ACTIVATIONS[activation](), NORMALIZATIONS[normalization](dim)]

        def block(drop_rate: float) -> Sequential:
            depthwise = Sequential(*normalised(DepthwiseConv2d(dim, kernel_size, padding="same")))
            pointwise = normalised(nn.Conv2d(dim, dim, kernel_size=1))
            if residual == "none":
                return Sequential(depthwise, *pointwise)
            summed = Residual(depthwise, drop_rate=drop_rate)
            if residual == "both":
                return Sequential(summed, Residual(Sequential(*pointwise), drop_rate=drop_rate))
            return Sequential(summed, *pointwise)

        # [B, 3, H, W] -> [B, h, H/p, W/p], and so it stays
        self.stem = Sequential(*normalised(nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size)))
        self.blocks = nn.Sequential(*(block(i / max(depth - 1, 1) * stochastic_depth) for i in range(depth)))
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        if isinstance(self.head, nn.Linear):
            with torch.no_grad():
                self.head.bias.add_(head_bias)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> logits [B, K]."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> features [B, h, H/p, W/p]."""
        z: Tensor = self.blocks(self.stem(images))
        return z

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """[B, h, H/p, W/p] -> logits [B, K]: the mean over positions [B, h] (`pre_logits`: no more), a linear layer."""
        x = features.mean(dim=(2, 3))  # [B, h]
        return x if pre_logits else self.head(x)
