"""AlexNet in one column, without normalisation: torchvision's, after "One weird trick for parallelizing convolutional
neural networks" (Krizhevsky, arXiv 1404.5997). The net of 2012 is alexnet2012.py.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torchvision.models
from torch import Tensor, nn

from mixer_lightning.models.alexnet2012 import side_of_pool5
from mixer_lightning.models.patches import refuse_stochastic_depth
from mixer_lightning.ranges import BelowOne, NonNegativeInt, PositiveInt, check_ranges


class AlexNet(torchvision.models.AlexNet):  # type: ignore[misc]
    """Normalised images [B, 3, H, W] of 63 px and more -> logits [B, K], by torchvision's layers and names.

    Its published weights (alexnet-owt-7be5be79.pth) are read as they are. `forward` takes other sizes too: the last
    maps are averaged to 6 x 6.
    """

    channels_last: ClassVar[bool] = True
    head_name: ClassVar[str] = "classifier.6"

    @check_ranges
    def __init__(
        self,
        *,
        dropout: BelowOne = 0.5,
        num_classes: NonNegativeInt,
        image_size: PositiveInt,
        stochastic_depth: BelowOne = 0.0,
        head_bias: float = 0.0,
    ) -> None:
        refuse_stochastic_depth("AlexNet", stochastic_depth)
        side_of_pool5(image_size)  # raises where nothing is left
        super().__init__(num_classes=max(num_classes, 1), dropout=dropout)
        self.num_classes, self.image_size = num_classes, image_size
        self.head_bias, self.num_features = head_bias, self.classifier[6].in_features
        if num_classes:
            with torch.no_grad():
                self.classifier[6].bias.add_(head_bias)
        else:
            self.classifier[6] = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> logits [B, K]."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> [B, 256, 6, 6]; a ValueError where they are too small."""
        side_of_pool5(min(images.shape[-2:]))
        x: Tensor = self.avgpool(self.features(images))
        return x

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """[B, 256, 6, 6] -> logits [B, K]: two hidden layers, [B, 4096] (`pre_logits`: no more), a linear layer."""
        x: Tensor = self.classifier[:6](features.flatten(1))
        return x if pre_logits else self.classifier[6](x)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers as timm's `group_parameters` takes them: five convolutions and three full layers."""
        return {"stem": r"^features\.0\.", "convs": r"^features\.(\d+)", "hidden": r"^classifier\.([14])\."}
