"""LeNet-5: "Gradient-Based Learning Applied to Document Recognition" (LeCun, Bottou, Bengio and Haffner, Proceedings of
the IEEE 86(11):2278-2324, 1998), section II.B.

Most code of that name is another net (all maps of S2 into each of C3, plain pooling, a softmax layer: 61.7k
parameters). This is the paper's: trainable pooling, table I, the RBF output on fixed codes. UNVERIFIED are the codes:
the paper draws characters of 7x12 pixels, which exist as a picture only; here each class has 84 fixed random signs.

    B images   S image_size (32 in the paper)   K num_classes
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixer_lightning.models.lecun1989 import TableConv2d, init_uniform_by_fan_in
from mixer_lightning.models.patches import check_square, refuse_stochastic_depth, what_works
from mixer_lightning.ranges import BelowOne, NonNegativeInt, PositiveInt, check_ranges

#: Table I of the paper: for each map of C3 the maps of S2 that it sees.
C3_TABLE = [
    *([i, (i + 1) % 6, (i + 2) % 6] for i in range(6)),
    *([i, (i + 1) % 6, (i + 2) % 6, (i + 3) % 6] for i in range(6)),
    *([i, (i + 1) % 6, (i + 3) % 6, (i + 4) % 6] for i in range(3)),
    [0, 1, 2, 3, 4, 5],
]


class LeNet5(nn.Module):
    """Normalised images [B, 3, S, S] -> logits [B, K].

    The net sees one channel, the mean of the three. Logits are minus the penalties of the RBF units, so that the
    softmax loss is the paper's equation 9 but for its constant e^-j, and the class of the least penalty wins. At the
    paper's 32 px it has 60,000 parameters, whatever K is: codes are not trained. With output=linear a trained layer
    stands in the place of the RBF units, as a linear probe and a head to be kept in files want.
    """

    channels_last: ClassVar[bool] = False
    head_name: ClassVar[str] = "head"

    @check_ranges
    def __init__(
        self,
        *,
        output: Literal["rbf", "linear"] = "rbf",
        num_classes: NonNegativeInt,
        image_size: PositiveInt,
        stochastic_depth: BelowOne = 0.0,
        head_bias: float = 0.0,
    ) -> None:
        super().__init__()
        if output not in ("rbf", "linear"):
            raise ValueError(f"output must be rbf or linear, found {output!r}")
        if output == "rbf" and head_bias:
            raise ValueError(f"the RBF output of LeNet-5 has no bias: use head_bias=0, not {head_bias}")
        refuse_stochastic_depth("LeNet-5", stochastic_depth)
        side = side_of_s4(image_size)
        self.num_classes, self.image_size, self.num_features = num_classes, image_size, 84
        self.head_bias = head_bias
        self.c1 = nn.Conv2d(1, 6, kernel_size=5)
        self.s2 = Subsampling(6)
        self.c3 = TableConv2d(C3_TABLE, kernel_size=5, bias=True)
        self.s4 = Subsampling(16)
        self.c5 = nn.Conv2d(16, 120, kernel_size=side)  # spans S4: a full connection
        self.f6 = nn.Linear(120, 84)
        self.head: nn.Module = nn.Identity()
        if num_classes:
            self.head = RBFOutput(num_classes) if output == "rbf" else nn.Linear(84, num_classes)
        self.apply(init_uniform_by_fan_in)
        if isinstance(self.head, nn.Linear):
            nn.init.constant_(self.head.bias, head_bias)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] -> logits [B, K]."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] -> maps of C5 [B, 120, 1, 1]; other sizes are a ValueError. In brackets S = 32."""
        check_square(images, image_size=self.image_size)
        x = images.mean(dim=1, keepdim=True)  # [B, 1, S, S]
        x = squash(self.c1(x))  # [B, 6, S - 4, S - 4] (28)
        x = squash(self.s2(x))  # [B, 6, (S - 4) / 2, ...] (14)
        x = squash(self.c3(x))  # [B, 16, ...] (10)
        x = squash(self.s4(x))  # [B, 16, ...] (5)
        return squash(self.c5(x))  # [B, 120, 1, 1]

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """[B, 120, 1, 1] -> logits [B, K]: the 84 units of F6 (`pre_logits`: no more), the output."""
        x = squash(self.f6(features.flatten(1)))  # [B, 84]
        return x if pre_logits else self.head(x)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers as timm's `group_parameters` takes them: C1 is the stem, then S2 to F6 and the output."""
        return {"stem": r"^c1", "blocks": [(r"^[csf](\d)", None)]}


class Subsampling(nn.Module):
    """For each map: a trained coefficient times the sum of 2x2 units, plus a trained bias."""

    def __init__(self, num_maps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_maps).uniform_(-2.4 / 4, 2.4 / 4))  # F_i is 4
        self.bias = nn.Parameter(torch.zeros(num_maps))

    def forward(self, x: Tensor) -> Tensor:
        """[B, maps, h, w] -> [B, maps, h/2, w/2]."""
        total = 4 * F.avg_pool2d(x, 2)
        return total * self.weight[:, None, None] + self.bias[:, None, None]


class RBFOutput(nn.Module):
    """Minus the penalties y_i = sum_j (x_j - w_ij)^2 of fixed codes w_i of +-1 (equation 7 of the paper).

    The codes follow from the number of classes and stand in no file of weights.
    """

    codes: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        generator = torch.Generator("cpu").manual_seed(1998)
        signs = torch.randint(0, 2, (num_classes, 84), generator=generator, device="cpu") * 2 - 1
        codes = signs.to(torch.get_default_dtype()).to(torch.get_default_device())
        self.register_buffer("codes", codes, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 84] -> [B, K]."""
        return -(x.float()[:, None, :] - self.codes).square().sum(dim=-1)


def squash(a: Tensor) -> Tensor:
    """f(a) = A tanh(S a), A = 1.7159, S = 2/3 (appendix A of the paper): f(1) = 1, f(-1) = -1."""
    return 1.7159 * torch.tanh(2 / 3 * a)


def side_of_s4(image_size: int) -> int:
    """Units along a side of S4; ValueError where the poolings leave a row over or nothing is left."""
    if image_size < 16 or image_size % 4:
        raise ValueError(
            f"image_size {image_size} does not go through LeNet-5, which takes multiples of 4 from 16 px: "
            f"{what_works(image_size, 4, smallest=16)}, and 32 is the size of the paper"
        )
    return (image_size - 12) // 4
