"""Every family answers the protocol: what `forward_head` gives before the logits is what the head multiplies."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mixer_lightning.models.baselines import timm_backbone
from mixer_lightning.models.presets import build_model
from mixer_lightning.models.protocol import Backbone

SWIN = "swin_tiny_patch4_window7_224"  # [B, H, W, C]
DEIT = "deit_tiny_patch16_224"  # a class token before the others


def backbone(name: str, *, image_size: int, num_classes: int = 7) -> nn.Module:
    """With random numbers in the head, too."""
    torch.manual_seed(0)
    if name in (SWIN, DEIT) or name.startswith("resnet"):
        model = timm_backbone(timm_name=name, num_classes=num_classes, image_size=image_size)
    else:
        overrides = (
            {"output": "linear"} if name == "lenet_5" else {}
        )  # codes are not multiplied, but compared
        model = build_model(name, num_classes=num_classes, image_size=image_size, overrides=overrides)
    head = model.get_submodule(model.head_name)
    nn.init.normal_(head.weight)
    nn.init.normal_(head.bias)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "image_size", "axes"),
    [
        ("mixer_digits", 8, (64, "F")),
        ("convmixer_96_4", 8, ("F", 8, 8)),
        ("resnet18", 32, ("F", 1, 1)),
        (SWIN, 64, (2, 2, "F")),
        (DEIT, 32, (5, "F")),
        ("lecun_1989", 16, (12, 4, 4)),
        ("lenet_5", 32, (120, 1, 1)),
        ("alexnet", 63, (256, 6, 6)),
        ("alexnet_2012", 63, (256, 1, 1)),
        ("mobilenetv3_isometric_p8", 16, (1920, 2, 2)),
        ("mobilenetv3_isometric_minimalistic_p16", 32, (1920, 2, 2)),
        ("wrn_28_2", 16, ("F", 4, 4)),
        ("wrn_28_2_stem32", 15, ("F", 4, 4)),
    ],
)
@torch.no_grad()
def test_features_are_what_the_head_multiplies(name: str, image_size: int, axes: tuple[object, ...]) -> None:
    model = backbone(name, image_size=image_size)
    assert isinstance(model, Backbone)
    assert (model.num_classes, model.image_size) == (7, image_size)
    images = torch.randn(3, 3, image_size, image_size)
    everything = model.forward_features(images)
    assert everything.shape == (3, *(model.num_features if axis == "F" else axis for axis in axes))
    features = model.forward_head(model.forward_features(images), pre_logits=True)
    assert features.shape == (3, model.num_features)
    logits = model(images)
    assert logits.shape == (3, 7)
    assert logits.std() > 0.1
    assert torch.equal(model.forward_head(everything), logits)
    assert torch.equal(model.get_submodule(model.head_name)(features), logits)


def test_features_of_our_families_are_means() -> None:
    for name, axes in (("mixer_digits", (1,)), ("convmixer_96_4", (2, 3))):
        model = backbone(name, image_size=8)
        images = torch.randn(2, 3, 8, 8)
        expected = model.forward_features(images).mean(axes)
        assert torch.equal(model.forward_head(model.forward_features(images), pre_logits=True), expected)


def test_what_is_no_backbone_is_seen() -> None:
    assert not isinstance(nn.Linear(3, 4), Backbone)
