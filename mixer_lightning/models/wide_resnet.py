"""Wide residual networks for small images: WRN-d-k (Zagoruyko and Komodakis, arXiv 1605.07146; code:
szagoruyko/wide-residual-networks), with what Meta Pseudo Labels has changed (google-research, meta_pseudo_labels/
modeling.py, `Wrn28k`): stem_dim 16 k, leaky ReLU, dropout before the head, BatchNorm of epsilon 1e-3.

Initialisation is the authors': normal with variance 2 / fan_out (MSRinit), torch's for the head's weight, its bias
zero. Strided convolutions have a border of one pixel on every side, as in the authors' code.

    B images   d depth = 6 n + 4   k width   s stem_dim   K num_classes   H, W sides of the image
"""

from __future__ import annotations

import functools
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from mixer_lightning.models.convmixer import drop_branch
from mixer_lightning.ranges import (
    BelowOne,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    check_ranges,
)


class WideResNet(nn.Module):
    """Normalised images [B, 3, H, W] -> logits [B, K].

    `negative_slope` is 0 for ReLU. Trained weights work at every size.
    """

    channels_last: ClassVar[bool] = True
    head_name: ClassVar[str] = "head"

    @check_ranges
    def __init__(
        self,
        *,
        depth: PositiveInt,
        width: PositiveInt,
        stem_dim: PositiveInt = 16,
        negative_slope: NonNegativeFloat = 0.0,
        head_dropout: BelowOne = 0.0,
        bn_epsilon: PositiveFloat = 1e-5,
        bn_momentum: PositiveFloat = 0.1,
        num_classes: NonNegativeInt,
        image_size: PositiveInt,
        stochastic_depth: BelowOne = 0.0,
        head_bias: float = 0.0,
    ) -> None:
        super().__init__()
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"depth {depth} is not 6 n + 4: 10, 16, 22, 28, 34 and 40 work")
        if image_size < 4:
            raise ValueError(f"image_size {image_size} cannot be halved twice: 4 and more work")
        dims = (16 * width, 32 * width, 64 * width)
        self.num_classes, self.image_size, self.num_features = num_classes, image_size, dims[-1]
        self.head_bias, self.negative_slope, self.head_dropout = head_bias, negative_slope, head_dropout
        batch_norm = functools.partial(nn.BatchNorm2d, eps=bn_epsilon, momentum=bn_momentum)
        self.stem = nn.Conv2d(3, stem_dim, kernel_size=3, padding=1, bias=False)
        per_group = (depth - 4) // 6  # n
        blocks: list[nn.Module] = []
        in_dim = stem_dim
        for group, dim in enumerate(dims):
            for i in range(per_group):
                blocks.append(
                    WideBlock(
                        in_dim,
                        dim,
                        stride=2 if group and not i else 1,
                        negative_slope=negative_slope,
                        batch_norm=batch_norm,
                        drop_rate=len(blocks) / (3 * per_group - 1) * stochastic_depth,  # 0 in the first
                    )
                )
                in_dim = dim
        self.blocks = nn.Sequential(*blocks)
        self.norm = batch_norm(in_dim)
        self.head = nn.Linear(in_dim, num_classes) if num_classes else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if isinstance(self.head, nn.Linear):
            nn.init.constant_(self.head.bias, head_bias)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> logits [B, K]."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> features [B, 64 k, H/4, W/4], sides rounded up."""
        x = self.stem(images)  # [B, s, H, W]
        x = self.blocks(x)  # [B, 64 k, H/4, W/4]
        return F.leaky_relu(self.norm(x), self.negative_slope)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """[B, 64 k, H/4, W/4] -> logits [B, K]: the mean over positions [B, 64 k] (`pre_logits`), a linear layer."""
        x = F.dropout(features.mean(dim=(2, 3)), self.head_dropout, self.training)  # [B, 64 k]
        return x if pre_logits else self.head(x)


class WideBlock(nn.Module):
    """x_{l+1} = x_l + F(x_l), F = BN, activation, 3x3 convolution, twice.

    Where the shape changes, a 1x1 convolution of the first activation stands for x_l. Stochastic depth, of which
    the paper has none, drops F as in convmixer.py.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        *,
        stride: int,
        negative_slope: float,
        batch_norm: functools.partial[nn.BatchNorm2d],
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.negative_slope, self.drop_rate = negative_slope, drop_rate
        self.norm1 = batch_norm(in_dim)
        self.conv1 = nn.Conv2d(in_dim, dim, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm2 = batch_norm(dim)
        self.conv2 = nn.Conv2d(dim, dim, kernel_size=3, padding=1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or in_dim != dim:
            self.shortcut = nn.Conv2d(in_dim, dim, kernel_size=1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_dim, h, w] -> [B, dim, h/stride, w/stride]."""
        y = F.leaky_relu(self.norm1(x), self.negative_slope)
        identity = x if self.shortcut is None else self.shortcut(y)
        branch = self.conv2(F.leaky_relu(self.norm2(self.conv1(y)), self.negative_slope))
        return identity + drop_branch(branch, drop_rate=self.drop_rate, training=self.training)
