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
from typing import Literal

from torch import Tensor, nn

from mixer_lightning.kernels.activation_norm import Sequential
from mixer_lightning.models.convmixer import ConvMixer, Residual
from mixer_lightning.ranges import BelowOne, NonNegativeInt, PositiveInt, check_ranges


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


class AblatedConvMixer(ConvMixer):
    """Normalised images [B, 3, image_size, image_size] -> logits [B, K].

    `residual` says which of the two steps of a block has a sum, `normalization` what N is.
    """

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
        for name, value, known in (
            ("residual", residual, ("depthwise", "both", "none")),
            ("normalization", normalization, NORMALIZATIONS),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, found {value!r}")
        if residual == "none" and stochastic_depth:
            raise ValueError("residual=none leaves no branch that stochastic_depth could drop: set it to 0")
        super().__init__(
            dim=dim,
            depth=depth,
            kernel_size=kernel_size,
            patch_size=patch_size,
            activation=activation,
            num_classes=num_classes,
            image_size=image_size,
            stochastic_depth=stochastic_depth,
            head_bias=head_bias,
        )
        if normalization != "batch":
            for part in list(self.modules()):
                for name, each in part.named_children():
                    if isinstance(each, nn.BatchNorm2d):
                        setattr(part, name, NORMALIZATIONS[normalization](dim))
        if residual != "depthwise":
            self.blocks = nn.Sequential(*(_with_residual(block, residual) for block in self.blocks))


def _with_residual(block: nn.Module, residual: Literal["both", "none"]) -> Sequential:
    """A published block (the sum of (2), then the layers of (3)) with sums in both steps, or in none."""
    assert isinstance(block, Sequential)
    depthwise, *pointwise = block
    assert isinstance(depthwise, Residual)
    if residual == "none":
        return Sequential(depthwise.fn, *pointwise)
    return Sequential(depthwise, Residual(Sequential(*pointwise), drop_rate=depthwise.drop_rate))
