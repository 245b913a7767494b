"""ConvMixer: "Patches Are All You Need?" (Trockman and Kolter, arXiv 2201.09792; code: locuslab/convmixer).

BatchNorm follows the activation. Initialisation is torch's default, GELU is the exact (erf) form. Attribute names are
timm's.

    B images   p patch_size   h dim   K num_classes   H, W sides of the image
"""

from __future__ import annotations

import warnings
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from mixer_lightning.kernels.activation_norm import Sequential
from mixer_lightning.kernels.depthwise import DepthwiseConv2d
from mixer_lightning.kernels.standing_in import is_watched
from mixer_lightning.models.patches import grid_size
from mixer_lightning.ranges import BelowOne, NonNegativeInt, PositiveInt, check_ranges

# torch warns that it pads a copy for even kernels: that is what the paper's kernels of 8 need.
warnings.filterwarnings("ignore", message="Using padding='same' with even kernel lengths")


class ConvMixer(nn.Module):
    """Normalised images [B, 3, image_size, image_size] -> logits [B, K].

    `head_bias` is added to torch's random initial bias of the head. Trained weights work at every multiple of
    patch_size, so `forward` takes other sizes too.
    """

    channels_last: ClassVar[bool] = True  # its convolutions are faster on memory ordered [B, H, W, C]
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
        num_classes: NonNegativeInt,
        image_size: PositiveInt,
        stochastic_depth: BelowOne = 0.0,
        head_bias: float = 0.0,
    ) -> None:
        super().__init__()
        grid_size(image_size=image_size, patch_size=patch_size)  # raises where patches do not fill the image
        self.num_classes, self.image_size, self.num_features = num_classes, image_size, dim
        self.head_bias = head_bias
        self.activation = activation
        activations = {"gelu": nn.GELU, "relu": nn.ReLU}
        if activation not in activations:
            raise ValueError(f"activation must be gelu or relu, found {activation!r}")
        sigma = activations[activation]
        # z_0 = BN(sigma(Conv_{3 -> h}(X, stride=p, kernel=p)))                          (1)
        self.stem = Sequential(
            nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size), sigma(), nn.BatchNorm2d(dim)
        )  # [B, 3, H, W] -> [B, h, H/p, W/p], and so it stays
        self.blocks = nn.Sequential(
            *(
                Sequential(
                    # z'_l = BN(sigma(ConvDepthwise(z_{l-1}))) + z_{l-1}                 (2)
                    Residual(
                        Sequential(
                            # "same" pads an even kernel by one more on the right, so that the sum is defined
                            DepthwiseConv2d(dim, kernel_size, padding="same"),
                            sigma(),
                            nn.BatchNorm2d(dim),
                        ),
                        drop_rate=i / max(depth - 1, 1) * stochastic_depth,  # 0 in the first block
                    ),
                    # z_l = BN(sigma(ConvPointwise(z'_l)))                               (3)
                    nn.Conv2d(dim, dim, kernel_size=1),
                    sigma(),
                    nn.BatchNorm2d(dim),
                )
                for i in range(depth)
            )
        )
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


class Residual(nn.Module):
    """x + fn(x); training drops the fn(x) of a sample with probability `drop_rate` and divides the kept by the rest.

    Stochastic depth is not in the paper's architecture: only recipes after "ResNet strikes back" (arXiv
    2110.00476) use it, with the rescaling of timm's DropPath.
    """

    def __init__(self, fn: nn.Module, *, drop_rate: float) -> None:
        super().__init__()
        self.fn = fn
        self.drop_rate = drop_rate

    def forward(self, x: Tensor) -> Tensor:
        """[B, h, H/p, W/p] -> the same shape."""
        is_whole = not (self.training and self.drop_rate > 0)
        if is_whole and isinstance(self.fn, Sequential) and not is_watched(self.fn):
            z: Tensor = self.fn(x, plus=x)
            return z
        return drop_branch(self.fn(x), drop_rate=self.drop_rate, training=self.training) + x


def drop_branch(branch: Tensor, *, drop_rate: float, training: bool) -> Tensor:
    """[B, ...]: training zeros a sample with probability `drop_rate` and divides the kept by the rest."""
    if not training or drop_rate == 0:
        return branch
    kept = torch.rand(branch.shape[0], *[1] * (branch.ndim - 1), device=branch.device) >= drop_rate
    return branch * kept / (1 - drop_rate)
