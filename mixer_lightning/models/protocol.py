"""What every backbone offers, whatever the layout of its features.

B images   F num_features   K num_classes   H, W sides of the image = image_size
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Backbone(Protocol):
    """An nn.Module from normalised images [B, 3, H, W] to logits [B, K].

    A constructor takes, besides what its file of conf/model says, the keywords num_classes, image_size,
    stochastic_depth and head_bias. With num_classes=0 there is no head, and logits are features [B, F]. Names in the
    state dict are timm's.
    """

    @property
    def num_classes(self) -> int:
        """K."""

    @property
    def image_size(self) -> int:
        """Side in pixels of the images that it was made for."""

    @property
    def num_features(self) -> int:
        """F."""

    @property
    def channels_last(self) -> bool:
        """Whether it is faster on memory ordered [B, H, W, C]."""

    @property
    def head_name(self) -> str:
        """The submodule to logits, `head` or `fc`, from features, or from a head's hidden layer (CAFormer).

        Another set of classes needs a new one.
        """

    @property
    def head_bias(self) -> float:
        """What the bias of a new head starts from."""

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> logits [B, K]."""

    def forward_features(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> all that the last block makes, such as [B, S, F], [B, F, h, w] or [B, h, w, F]."""

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """What `forward_features` gives -> logits [B, K]; with `pre_logits` the input of the last layer, [B, F]."""
