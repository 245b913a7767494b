"""MLP-Mixer: an image classifier made of matrix products (Tolstikhin et al., arXiv 2105.01601).

Numerics are those of the official Flax code (google-research/vision_transformer, vit_jax/models_mixer.py; stochastic
depth as in google-research/big_vision, big_vision/models/mlp_mixer.py). Attribute names are timm's.

    B images   P patch_size   S tokens = (image_size / P)^2   C hidden_dim
    Ds tokens_mlp_dim   Dc channels_mlp_dim   K num_classes
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from mixer_lightning.kernels.mlp import mlp
from mixer_lightning.kernels.standing_in import is_watched
from mixer_lightning.models.patches import check_square, grid_size
from mixer_lightning.ranges import BelowOne, NonNegativeInt, PositiveInt, check_ranges


class Mixer(nn.Module):
    """Normalised images [B, 3, image_size, image_size] -> logits [B, K]."""

    channels_last: ClassVar[bool] = False
    head_name: ClassVar[str] = "head"

    @check_ranges
    def __init__(
        self,
        *,
        patch_size: PositiveInt,
        num_blocks: PositiveInt,
        hidden_dim: PositiveInt,
        tokens_mlp_dim: PositiveInt,
        channels_mlp_dim: PositiveInt,
        num_classes: NonNegativeInt,
        image_size: PositiveInt,
        stochastic_depth: BelowOne = 0.0,
        head_bias: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes, self.image_size, self.num_features = num_classes, image_size, hidden_dim
        self.head_bias = head_bias
        num_tokens = grid_size(image_size=image_size, patch_size=patch_size) ** 2
        self.stem = Stem(patch_size=patch_size, dim=hidden_dim)
        self.blocks = nn.Sequential(
            *(
                MixerBlock(
                    num_tokens=num_tokens,
                    dim=hidden_dim,
                    tokens_mlp_dim=tokens_mlp_dim,
                    channels_mlp_dim=channels_mlp_dim,
                    drop_rate=i / max(num_blocks - 1, 1) * stochastic_depth,  # 0 in the first block
                )
                for i in range(num_blocks)
            )
        )
        self.norm = nn.LayerNorm(hidden_dim, eps=1e-6)
        self.head = nn.Linear(hidden_dim, num_classes) if num_classes else nn.Identity()
        self.apply(init_lecun_normal)
        if isinstance(self.head, nn.Linear):
            nn.init.zeros_(self.head.weight)
            nn.init.constant_(self.head.bias, head_bias)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> logits [B, K]."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> normalised tokens [B, S, C]; H and W must be `image_size` (else ValueError)."""
        check_square(images, image_size=self.image_size)
        x: Tensor = self.norm(self.blocks(self.stem(images)))
        return x

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens [B, S, C] -> logits [B, K]: the mean over tokens [B, C] (`pre_logits`: no more), a linear layer."""
        x = features.mean(dim=1)  # [B, C]
        return x if pre_logits else self.head(x)


class MixerBlock(nn.Module):
    """Equation 1 of the paper on tokens x [B, S, C]."""

    def __init__(
        self, *, num_tokens: int, dim: int, tokens_mlp_dim: int, channels_mlp_dim: int, drop_rate: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        # W1, W2: shared by all channels
        self.mlp_tokens = Mlp(dim=num_tokens, hidden_dim=tokens_mlp_dim, over_tokens=True)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        # W3, W4: shared by all tokens
        self.mlp_channels = Mlp(dim=dim, hidden_dim=channels_mlp_dim, over_tokens=False)
        self.drop_rate = drop_rate

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, S, C] -> the same shape."""
        # U[:, i] = X[:, i] + W2 gelu(W1 LayerNorm(X)[:, i])   for every channel i
        u = self.add(x, self.mlp_tokens, self.norm1(x))
        # Y[j, :] = U[j, :] + W4 gelu(W3 LayerNorm(U)[j, :])   for every token j
        return self.add(u, self.mlp_channels, self.norm2(u))

    def add(self, x: Tensor, mlp: nn.Module, normalised: Tensor) -> Tensor:
        """x + mlp(normalised); training drops the MLP of a sample with probability `drop_rate`, without rescaling."""
        if not self.training or self.drop_rate == 0:
            alone = is_watched(mlp) or not isinstance(
                mlp, Mlp
            )  # somebody wants to see the branch, or has changed it
            y: Tensor = x + mlp(normalised) if alone else mlp(normalised, plus=x)
            return y
        branch: Tensor = mlp(normalised)
        return x + branch * (torch.rand(branch.shape[0], 1, 1, device=branch.device) >= self.drop_rate)


class Mlp(nn.Module):
    """W2 gelu(W1 x + b1) + b2 over tokens or channels, with the tanh form of GELU (the default of Flax)."""

    def __init__(self, *, dim: int, hidden_dim: int, over_tokens: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.over_tokens = over_tokens

    def forward(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        """Tokens [B, S, C] -> the same shape; `plus` is added to them."""
        return mlp(x, self.fc1, self.fc2, over_tokens=self.over_tokens, plus=plus)


class Stem(nn.Module):
    """Patches in row-major order, each through the same linear layer: [B, 3, H, W] -> [B, S, C]."""

    def __init__(self, *, patch_size: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> tokens [B, S, C]."""
        x: Tensor = self.proj(images)  # [B, C, H/P, W/P]
        return x.flatten(2).mT  # [B, S, C]


def init_lecun_normal(module: nn.Module) -> None:
    """Kernels: normal cut at two deviations, variance 1 / fan_in after the cut; biases: zero (Flax's defaults)."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        std = module.weight[0].numel() ** -0.5 / 0.87962566  # the deviation of a unit normal cut at +-2
        nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        assert module.bias is not None
        nn.init.zeros_(module.bias)
