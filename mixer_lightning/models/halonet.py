"""HaloNet: a ResNet whose 3x3 convolutions are attention in blocks (Vaswani et al., arXiv 2103.12731).

Each block of b x b queries attends to the window around it: the block and a halo of h positions on every side. There is
no official code: what the paper leaves open (where BatchNorm stands, initialisation) is as in timm's ByobNet and
HaloAttn, whose names the attributes have.

    B images   D width of the attention   N heads   d, e channels of a head's keys and values   K num_classes
    b block_size   Y, X blocks of a feature map   q = b / stride queries along a block   v = b + 2 h side of a window
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixer_lightning.models.convmixer import drop_branch
from mixer_lightning.models.patches import check_blocks_fill
from mixer_lightning.ranges import BelowOne, NonNegativeInt, PositiveFloat, PositiveInt, check_ranges


class HaloNet(nn.Module):
    """Normalised images [B, 3, image_size, image_size] -> logits [B, K].

    Trained weights work at every size whose feature maps the blocks fill, so `forward` takes those, too.

    Args:
        block_size: b.
        halo_size: h.
        value_ratio: the paper's r_v: channels of the values over D.
        output_ratio: the paper's r_b: channels of a block's output over D.
        num_blocks: residual blocks of the four stages, of which the third is the paper's l_3.
        num_heads: N in the four stages.
        final_dim: the paper's d_f: channels of a last 1x1 convolution; 0: there is none.
        base_width: channels of the stem, and D in the first stage; D doubles from stage to stage.
        convolution_stages: how many of the first stages have 3x3 convolutions instead of attention.

    Raises:
        ValueError: blocks do not fill the feature maps of such images, or a number of channels is not whole.
    """

    channels_last: ClassVar[bool] = True
    head_name: ClassVar[str] = "head.fc"

    @check_ranges
    def __init__(
        self,
        *,
        block_size: PositiveInt,
        halo_size: NonNegativeInt,
        value_ratio: PositiveFloat,
        output_ratio: PositiveFloat,
        num_blocks: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt],
        num_heads: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt],
        final_dim: NonNegativeInt,
        base_width: PositiveInt,
        convolution_stages: NonNegativeInt,
        num_classes: NonNegativeInt,
        image_size: PositiveInt,
        stochastic_depth: BelowOne = 0.0,
        head_bias: float = 0.0,
    ) -> None:
        super().__init__()
        if convolution_stages < 4:
            check_blocks_fill(image_size=image_size, block_size=block_size)
        self.num_classes, self.image_size, self.head_bias = num_classes, image_size, head_bias
        self.stem = nn.Sequential()
        self.stem.add_module("conv1", ConvNorm(3, base_width, kernel_size=7, stride=2))
        self.stem.add_module("act", nn.SiLU())
        self.stem.add_module("pool", nn.MaxPool2d(3, stride=2, padding=1))  # [B, C, H/4, W/4]
        last = max(sum(num_blocks) - 1, 1)
        self.stages, dim = nn.Sequential(), base_width
        for i in range(4):
            stage, width = nn.Sequential(), base_width * 2**i
            for j in range(num_blocks[i]):
                block = Bottleneck(
                    dim=dim,
                    width=width,
                    value_dim=_whole(value_ratio * width, "value_ratio"),
                    out_dim=_whole(output_ratio * width, "output_ratio"),
                    num_heads=num_heads[i],
                    block_size=None if i < convolution_stages else block_size,
                    halo_size=halo_size,
                    stride=2 if i > 0 and j == 0 else 1,
                    drop_rate=(sum(num_blocks[:i]) + j) / last * stochastic_depth,  # 0 in the first block
                )
                stage.append(block)
                dim = block.out_dim
            self.stages.append(stage)  # [B, dim, H/4, W/4], then H/8, H/16, H/32
        self.final_conv = ConvNorm(dim, final_dim) if final_dim else nn.Identity()
        self.final_act = nn.SiLU() if final_dim else nn.Identity()
        self.num_features = final_dim or dim
        self.head = nn.Sequential()
        self.head.add_module(
            "fc", nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        )
        self.apply(init_weights)
        if num_classes:
            nn.init.constant_(self.get_parameter("head.fc.bias"), head_bias)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> logits [B, K]."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> features [B, F, H/32, W/32]."""
        x: Tensor = self.final_act(self.final_conv(self.stages(self.stem(images))))
        return x

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """[B, F, H/32, W/32] -> logits [B, K]: the mean over positions (`pre_logits`: no more), a linear layer."""
        x = features.mean(dim=(2, 3))  # [B, F]
        return x if pre_logits else self.head(x)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers as timm's `group_parameters` takes them: each block one, the last convolution of the last of them."""
        block = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"
        return {"stem": r"^stem", "blocks": [(block, None), (r"^final_conv", (99999,))]}


class Bottleneck(nn.Module):
    """The residual block of a stage, [B, dim, H, W] -> [B, out_dim, H / stride, W / stride].

    Without a `block_size`, a 3x3 convolution stands where attention would.
    """

    def __init__(
        self,
        *,
        dim: int,
        width: int,
        value_dim: int,
        out_dim: int,
        num_heads: int,
        block_size: int | None,
        halo_size: int,
        stride: int,
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.out_dim, self.drop_rate = out_dim, drop_rate
        changes = dim != out_dim or stride != 1
        self.shortcut = ConvNorm(dim, out_dim, stride=stride) if changes else nn.Identity()
        self.conv1_1x1 = ConvNorm(dim, width)
        if block_size is None:
            value_dim = width
            self.conv2_kxk = ConvNorm(width, width, kernel_size=3, stride=stride)
        else:
            self.self_attn = HaloAttention(
                dim=width,
                value_dim=value_dim,
                num_heads=num_heads,
                block_size=block_size,
                halo_size=halo_size,
                stride=stride,
            )
            self.post_attn = nn.BatchNorm2d(value_dim)
        self.has_attention = block_size is not None
        self.conv3_1x1 = ConvNorm(value_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, dim, H, W] -> [B, out_dim, H / stride, W / stride]."""
        y = F.silu(self.conv1_1x1(x))  # [B, D, H, W]
        y = F.silu(self.post_attn(self.self_attn(y)) if self.has_attention else self.conv2_kxk(y))
        branch = drop_branch(self.conv3_1x1(y), drop_rate=self.drop_rate, training=self.training)
        return F.silu(self.shortcut(x) + branch)


class HaloAttention(nn.Module):
    """softmax over the window of (queries . keys / sqrt(d) + queries . relative positions), times the values.

    Where the window leaves the feature map, keys and values are zero. A stride of 2 keeps the queries of every other
    row and column: [B, D, H, W] -> [B, N e, H / stride, W / stride].
    """

    def __init__(
        self, *, dim: int, value_dim: int, num_heads: int, block_size: int, halo_size: int, stride: int
    ) -> None:
        super().__init__()
        if dim % num_heads or value_dim % num_heads:
            raise ValueError(f"{num_heads} heads do not divide {dim} channels of keys, {value_dim} of values")
        if block_size % stride:
            raise ValueError(f"block_size must be even, found {block_size}: strides keep every other query")
        self.block_size, self.halo_size, self.stride = block_size, halo_size, stride
        self.num_heads = num_heads
        self.window = block_size + 2 * halo_size  # v
        self.key_dim, self.value_dim = dim // num_heads, value_dim // num_heads  # d, e
        self.q = nn.Conv2d(dim, dim, 1, stride=stride, bias=False)
        self.kv = nn.Conv2d(
            dim, dim + value_dim, 1, bias=False
        )  # a head's d of keys, its e of values, the next's
        self.pos_embed = RelativePositions(
            window=self.window, dim=self.key_dim, num_queries=block_size // stride, stride=stride
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] -> [B, N e, H / stride, W / stride]; ValueError where blocks do not fill the feature map."""
        b, v, q, n = self.block_size, self.window, self.block_size // self.stride, self.num_heads
        if x.shape[2] % b or x.shape[3] % b:
            found = "x".join(map(str, x.shape[2:]))
            raise ValueError(f"blocks of {b} do not fill a feature map of {found}: use other images")
        rows, columns = x.shape[2] // b, x.shape[3] // b  # Y, X
        queries = self.q(x).reshape(-1, n, self.key_dim, rows, q, columns, q)
        queries = queries.permute(0, 1, 3, 5, 4, 6, 2)  # [B, N, Y, X, q, q, d]
        both = F.pad(self.kv(x), [self.halo_size] * 4)  # [B, N(d+e), H + 2h, W + 2h]
        windows = both.unfold(2, v, b).unfold(3, v, b)  # [B, N(d+e), Y, X, v, v]
        windows = windows.reshape(-1, n, self.key_dim + self.value_dim, rows, columns, v * v)
        keys, values = windows[:, :, : self.key_dim], windows[:, :, self.key_dim :]
        scores = queries.flatten(4, 5) @ keys.permute(0, 1, 3, 4, 2, 5)  # [B, N, Y, X, q^2, v^2]
        scores = scores * self.key_dim**-0.5 + self.pos_embed(queries)
        out = scores.softmax(dim=-1) @ values.permute(0, 1, 3, 4, 5, 2)  # [B, N, Y, X, q^2, e]
        out = out.unflatten(4, (q, q)).permute(0, 1, 6, 2, 4, 3, 5)  # [B, N, e, Y, q, X, q]
        joined: Tensor = out.reshape(-1, n * self.value_dim, rows * q, columns * q)
        return joined


class RelativePositions(nn.Module):
    """Scores of queries for how far each key is: one learned vector a row of distance, and one a column.

    The distance is counted on the feature map, also where a stride leaves queries out (timm's HaloAttn then counts
    queries).
    """

    distances: Tensor

    def __init__(self, *, window: int, dim: int, num_queries: int, stride: int) -> None:
        super().__init__()
        self.height_rel = nn.Parameter(torch.zeros(2 * window - 1, dim))  # shared by the heads
        self.width_rel = nn.Parameter(torch.zeros(2 * window - 1, dim))
        keys, queries = torch.arange(window), stride * torch.arange(num_queries)
        self.register_buffer(
            "distances", keys - queries[:, None] + window - 1, persistent=False
        )  # [q, v], >= 0

    def forward(self, queries: Tensor) -> Tensor:
        """Queries [B, N, Y, X, q, q, d] -> scores [B, N, Y, X, q^2, v^2]."""
        by_row = torch.einsum("bnyxijd,ird->bnyxijr", queries, self.height_rel[self.distances])
        by_column = torch.einsum("bnyxijd,jcd->bnyxijc", queries, self.width_rel[self.distances])
        scores = by_row[..., :, None] + by_column[..., None, :]  # [B, N, Y, X, q, q, v, v]
        return scores.flatten(6, 7).flatten(4, 5)


class ConvNorm(nn.Module):
    """A convolution and BatchNorm: [B, C, H, W] -> [B, C', H / stride, W / stride]."""

    def __init__(self, dim: int, out_dim: int, *, kernel_size: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, out_dim, kernel_size, stride=stride, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H / stride, W / stride]."""
        y: Tensor = self.bn(self.conv(x))
        return y


def init_weights(module: nn.Module) -> None:
    """As timm: a residual block starts as its shortcut, convolutions normal by fan-out, attention by fan-in."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
    elif isinstance(module, Bottleneck):
        nn.init.zeros_(module.conv3_1x1.bn.weight)
    elif isinstance(module, HaloAttention):
        for conv in (module.q, module.kv):
            nn.init.trunc_normal_(conv.weight, std=conv.in_channels**-0.5)
        for table in module.pos_embed.parameters():
            nn.init.trunc_normal_(table, std=module.key_dim**-0.5)


def _whole(number: float, name: str) -> int:
    if number != int(number):
        raise ValueError(f"{name} gives {number:g} channels, which is not a whole number")
    return int(number)
