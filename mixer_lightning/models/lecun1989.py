"""The convolutional network of 1989 that reads zip codes: "Backpropagation Applied to Handwritten Zip Code Recognition"
(LeCun, Boser, Denker, Henderson, Howard, Hubbard and Jackel, Neural Computation 1:541-551).

Weights are shared within a map, biases are not: each unit has its own. UNVERIFIED, because unpublished: which 8 of the
12 maps of H1 each map of H2 sees; here the overlapping groups of karpathy/lecun1989-repro (repro.py). From there too:
biases start at zero, the border of H2 is -1 as that of H1; but its weights start within +-2.4 / sqrt(F_i).

    B images   S image_size (16 in the paper)   K num_classes
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixer_lightning.models.patches import check_square, refuse_stochastic_depth, what_works
from mixer_lightning.ranges import BelowOne, NonNegativeInt, PositiveInt, check_ranges

#: For each map of H2 the maps of H1 that it sees.
H2_TABLE = [[*range(8)]] * 4 + [[*range(4, 12)]] * 4 + [[*range(4), *range(8, 12)]] * 4


class LeCun1989(nn.Module):
    """Normalised images [B, 3, S, S] -> logits [B, K].

    The net sees one channel, the mean of the three; the paper's images, and its -1 around them, take mean and std 0.5.
    Its outputs are tanh(logits), trained on targets of +-1 by the squared error: logits are what our losses take, and
    tanh changes no order. At the paper's 16 px it has 9,760 parameters.
    """

    channels_last: ClassVar[bool] = False
    head_name: ClassVar[str] = "head"

    @check_ranges
    def __init__(
        self,
        *,
        num_classes: NonNegativeInt,
        image_size: PositiveInt,
        stochastic_depth: BelowOne = 0.0,
        head_bias: float = 0.0,
    ) -> None:
        super().__init__()
        refuse_stochastic_depth("The network of 1989", stochastic_depth)
        if image_size % 4:
            raise ValueError(
                f"image_size {image_size} cannot be halved twice: {what_works(image_size, 4)}, and 16 is the size of "
                "the paper"
            )
        self.num_classes, self.image_size, self.num_features = num_classes, image_size, 30
        self.head_bias = head_bias
        self.h1 = UnitBiasMaps(table=[[0]] * 12, side=image_size // 2)
        self.h2 = UnitBiasMaps(table=H2_TABLE, side=image_size // 4)
        self.h3 = nn.Linear(12 * (image_size // 4) ** 2, 30)
        self.head = nn.Linear(30, num_classes) if num_classes else nn.Identity()
        self.apply(init_uniform_by_fan_in)
        if isinstance(self.head, nn.Linear):
            nn.init.constant_(self.head.bias, head_bias)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] -> logits [B, K]."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] -> maps of H2 [B, 12, S/4, S/4]; other sizes are a ValueError."""
        check_square(images, image_size=self.image_size)
        x = images.mean(dim=1, keepdim=True)  # [B, 1, S, S]
        x = self.h1(x)  # [B, 12, S/2, S/2]
        y: Tensor = self.h2(x)  # [B, 12, S/4, S/4]
        return y

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """[B, 12, S/4, S/4] -> logits [B, K]: the 30 units of H3 (`pre_logits`: no more), a linear layer."""
        x = torch.tanh(self.h3(features.flatten(1)))  # [B, 30]
        return x if pre_logits else self.head(x)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers as timm's `group_parameters` takes them: H1 is the stem, then H2, H3 and the head."""
        return {"stem": r"^h1", "blocks": [(r"^h(\d)", None)]}


class UnitBiasMaps(nn.Module):
    """tanh of a 5x5 convolution of stride 2 within a border of -1, and of one bias for each unit.

    Biases are kept as a vector: what has one axis takes no weight decay (optim/groups.py).
    """

    def __init__(self, *, table: Sequence[Sequence[int]], side: int) -> None:
        super().__init__()
        self.side = side
        self.conv = TableConv2d(table, kernel_size=5, stride=2, bias=False)
        self.bias = nn.Parameter(torch.zeros(len(table) * side**2))

    def forward(self, x: Tensor) -> Tensor:
        """[B, maps seen, 2 side, 2 side] -> [B, maps, side, side]."""
        x = self.conv(F.pad(x, (2, 2, 2, 2), value=-1.0))
        return torch.tanh(x + self.bias.view(-1, self.side, self.side))


class TableConv2d(nn.Module):
    """A convolution of which output map i sees the input maps table[i] and no other, with a bias for each map or none.

    `weight` [pairs, kernel_size, kernel_size] has a kernel for each pair of maps, in the order of the table.
    """

    outputs: Tensor  # of each pair
    inputs: Tensor

    def __init__(
        self, table: Sequence[Sequence[int]], *, kernel_size: int, stride: int = 1, bias: bool
    ) -> None:
        super().__init__()
        self.stride = stride
        self.shape = (len(table), 1 + max(map(max, table)), kernel_size, kernel_size)
        pairs = [(output, seen) for output, maps in enumerate(table) for seen in maps]
        outputs, inputs = torch.tensor(pairs).T
        self.register_buffer("outputs", outputs.contiguous(), persistent=False)
        self.register_buffer("inputs", inputs.contiguous(), persistent=False)
        #: Inputs of the unit that a pair belongs to: its F_i.
        self.fan_in = [kernel_size**2 * len(maps) for maps in table for _ in maps]
        self.weight = nn.Parameter(torch.empty(len(pairs), kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(len(table))) if bias else None

    def dense_weight(self) -> Tensor:
        """[maps, maps seen, kernel_size, kernel_size], zero where there is no connection."""
        return self.weight.new_zeros(self.shape).index_put((self.outputs, self.inputs), self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[B, maps seen, h, w] -> [B, maps, h', w']."""
        return F.conv2d(x, self.dense_weight(), self.bias, stride=self.stride)


@torch.no_grad()
def init_uniform_by_fan_in(module: nn.Module) -> None:
    """Weights: uniform in +-2.4 / F_i, F_i the inputs of the unit (both papers); biases: zero."""
    if isinstance(module, TableConv2d):
        for kernel, fan_in in zip(module.weight, module.fan_in, strict=True):
            kernel.uniform_(-2.4 / fan_in, 2.4 / fan_in)
    elif isinstance(module, nn.Linear | nn.Conv2d):
        bound = 2.4 / module.weight[0].numel()
        nn.init.uniform_(module.weight, -bound, bound)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
