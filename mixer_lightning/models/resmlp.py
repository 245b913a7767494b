"""ResMLP: a residual network of linear layers, without normalisation (Touvron et al., arXiv 2105.03404).

Numerics and initialisation are those of the official code (facebookresearch/deit, resmlp_models.py). Attribute names
are timm's.

    B images   P patch_size   S tokens = (image_size / P)^2   C hidden_dim   K num_classes
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixer_lightning.models.convmixer import drop_branch
from mixer_lightning.models.patches import check_square, grid_size
from mixer_lightning.ranges import BelowOne, NonNegativeInt, PositiveFloat, PositiveInt, check_ranges


class ResMLP(nn.Module):
    """Normalised images [B, 3, image_size, image_size] -> logits [B, K].

    `layer_scale` is what the factors of all residual branches start from; the deeper the network, the smaller.
    """

    channels_last: ClassVar[bool] = False
    head_name: ClassVar[str] = "head"

    @check_ranges
    def __init__(
        self,
        *,
        patch_size: PositiveInt,
        num_blocks: PositiveInt,
        hidden_dim: PositiveInt,
        layer_scale: PositiveFloat,
        num_classes: NonNegativeInt,
        image_size: PositiveInt,
        stochastic_depth: BelowOne = 0.0,
        head_bias: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes, self.image_size, self.num_features = num_classes, image_size, hidden_dim
        self.head_bias = head_bias
        num_tokens = grid_size(image_size=image_size, patch_size=patch_size) ** 2
        self.stem = nn.Sequential()
        self.stem.add_module("proj", nn.Conv2d(3, hidden_dim, kernel_size=patch_size, stride=patch_size))
        self.blocks = nn.Sequential(
            *(
                ResMLPBlock(
                    num_tokens=num_tokens,
                    dim=hidden_dim,
                    layer_scale=layer_scale,
                    drop_rate=stochastic_depth,  # the same in all blocks
                )
                for _ in range(num_blocks)
            )
        )
        self.norm = Affine(hidden_dim)
        self.head = nn.Linear(hidden_dim, num_classes) if num_classes else nn.Identity()
        self.apply(init_trunc_normal)
        if isinstance(self.head, nn.Linear):
            nn.init.constant_(self.head.bias, head_bias)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> logits [B, K]."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> tokens [B, S, C]; H and W must be `image_size` (else ValueError)."""
        check_square(images, image_size=self.image_size)
        tokens = self.stem(images).flatten(2).mT  # [B, C, H/P, W/P] -> [B, S, C]
        x: Tensor = self.norm(self.blocks(tokens))
        return x

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens [B, S, C] -> logits [B, K]: the mean over tokens [B, C] (`pre_logits`: no more), a linear layer."""
        x = features.mean(dim=1)  # [B, C]
        return x if pre_logits else self.head(x)

    def no_weight_decay(self) -> set[str]:
        """Alpha and beta of all Aff: timm gives them three axes, the official code one, and vectors decay nowhere."""
        return {name for name, _ in self.named_parameters() if name.endswith((".alpha", ".beta"))}


class ResMLPBlock(nn.Module):
    """The paper's two residual branches on tokens x [B, S, C]; Aff(x) = alpha x + beta."""

    def __init__(self, *, num_tokens: int, dim: int, layer_scale: float, drop_rate: float) -> None:
        super().__init__()
        self.norm1 = Affine(dim)
        self.linear_tokens = nn.Linear(num_tokens, num_tokens)  # A: shared by all channels
        self.ls1 = nn.Parameter(torch.full((dim,), layer_scale))
        self.norm2 = Affine(dim)
        self.mlp_channels = Mlp(dim)  # B, C: shared by all tokens
        self.ls2 = nn.Parameter(torch.full((dim,), layer_scale))
        self.drop_rate = drop_rate

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, S, C] -> the same shape."""
        # Z = X + diag(ls1) (A Aff(X)^T)^T
        x = x + self.drop(
            self.ls1 * self.linear_tokens(self.norm1(x).mT).mT
        )  # [B, S, C] -> [B, C, S] -> [B, S, C]
        # Y = Z + diag(ls2) C gelu(B Aff(Z))
        return x + self.drop(self.ls2 * self.mlp_channels(self.norm2(x)))

    def drop(self, branch: Tensor) -> Tensor:
        """Stochastic depth on a branch [B, S, C]."""
        return drop_branch(branch, drop_rate=self.drop_rate, training=self.training)


class Affine(nn.Module):
    """alpha x + beta on each channel, in the place of a normalisation: no statistics. [..., C] -> [..., C]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, 1, dim))
        self.beta = nn.Parameter(torch.zeros(1, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, C] -> the same shape."""
        return torch.addcmul(self.beta, self.alpha, x)


class Mlp(nn.Module):
    """C gelu(B x) with biases, four times as wide inside, with the exact (erf) form of GELU."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return y


def init_trunc_normal(module: nn.Module) -> None:
    """Linear layers: normal of deviation .02, biases zero. The convolution of the stem keeps torch's default."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
