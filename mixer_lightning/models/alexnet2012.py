"""AlexNet as it was published: "ImageNet Classification with Deep Convolutional Neural Networks" (Krizhevsky,
Sutskever and Hinton, NIPS 2012), section 3.

Its convolutions 2, 4 and 5 have two groups, the halves that lay on two GPUs, and the first two are normalised across
channels. torchvision's `alexnet` (alexnet.py) is the one column without normalisation of arXiv 1404.5997.

    B images   S image_size (224 in the paper)   K num_classes
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mixer_lightning.models.patches import check_square, refuse_stochastic_depth
from mixer_lightning.ranges import BelowOne, NonNegativeInt, PositiveInt, check_ranges

SMALLEST_IMAGE = 63  # of which the three poolings leave one unit


class AlexNet2012(nn.Module):
    """Normalised images [B, 3, S, S] -> logits [B, K].

    The border of two pixels, which the paper does not mention, makes its 55 x 55 units of 224 pixels. At other sizes
    the first full connection has other inputs than 6 x 6 x 256, and the count is not the paper's.
    """

    channels_last: ClassVar[bool] = True
    head_name: ClassVar[str] = "fc8"

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
        super().__init__()
        refuse_stochastic_depth("AlexNet", stochastic_depth)
        side = side_of_pool5(image_size)
        self.num_classes, self.image_size = num_classes, image_size
        self.head_bias = head_bias
        self.conv1 = nn.Conv2d(3, 96, kernel_size=11, stride=4, padding=2)
        self.conv2 = nn.Conv2d(96, 256, kernel_size=5, padding=2, groups=2)
        self.conv3 = nn.Conv2d(256, 384, kernel_size=3, padding=1)
        self.conv4 = nn.Conv2d(384, 384, kernel_size=3, padding=1, groups=2)
        self.conv5 = nn.Conv2d(384, 256, kernel_size=3, padding=1, groups=2)
        self.fc6 = nn.Linear(256 * side**2, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.num_features = self.fc7.out_features
        self.fc8 = nn.Linear(4096, num_classes) if num_classes else nn.Identity()
        # b = a / (k + alpha sum a^2)^beta over n = 5 neighbours, alpha 1e-4; torch divides its alpha by n
        self.norm = nn.LocalResponseNorm(size=5, alpha=5 * 1e-4, beta=0.75, k=2.0)
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2)
        self.drop = nn.Dropout(dropout)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Section 5: weights of deviation 0.01; biases 1 in conv 2, 4, 5 and the hidden full layers, 0 elsewhere."""
        for name, module in self.named_children():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                assert module.bias is not None
                nn.init.constant_(module.bias, float(name in ("conv2", "conv4", "conv5", "fc6", "fc7")))
        if isinstance(self.fc8, nn.Linear):
            nn.init.constant_(self.fc8.bias, self.head_bias)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] -> logits [B, K]."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] -> [B, 256, 6, 6] for S = 224; other sizes than S are a ValueError."""
        check_square(images, image_size=self.image_size)
        x = self.pool(self.norm(self.conv1(images).relu()))  # [B, 96, 27, 27]
        x = self.pool(self.norm(self.conv2(x).relu()))  # [B, 256, 13, 13]
        x = self.conv3(x).relu()  # [B, 384, 13, 13]
        x = self.conv4(x).relu()
        y: Tensor = self.pool(self.conv5(x).relu())  # [B, 256, 6, 6]
        return y

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """[B, 256, 6, 6] -> logits [B, K]: two hidden layers, [B, 4096] (`pre_logits`: no more), a linear layer."""
        x: Tensor = self.drop(self.fc6(features.flatten(1)).relu())
        x = self.drop(self.fc7(x).relu())
        return x if pre_logits else self.fc8(x)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers as timm's `group_parameters` takes them: the eight of the paper."""
        return {"stem": r"^conv1", "blocks": [(r"^(?:conv|fc)([2-7])", None)]}


def side_of_pool5(image_size: int) -> int:
    """Units along a side after the last pooling; ValueError for images of which nothing is left."""
    if image_size < SMALLEST_IMAGE:
        raise ValueError(
            f"image_size {image_size} is too small for AlexNet, of which the poolings leave nothing: "
            f"{SMALLEST_IMAGE} and more work, and 224 is the size of the paper"
        )
    side = (image_size + 2 * 2 - 11) // 4 + 1
    for _ in range(3):
        side = (side - 3) // 2 + 1
    return side
