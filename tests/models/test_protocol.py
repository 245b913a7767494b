"""Every family answers the protocol: what `forward_head` gives before the logits is what the head multiplies."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mixer_lightning.models.baselines import timm_backbone
from mixer_lightning.models.presets import build_model
from mixer_lightning.models.protocol import Backbone

SWIN = "swin_tiny_patch4_window7_224"  # [B, H, W, C]
DEIT = "deit_tiny_patch16_224"  # a class token before the others
# With which a model of conf/model is small, or has a head that multiplies (LeNet-5's codes are compared).
OVERRIDES: dict[str, dict[str, object]] = {
    "halonet_h3": {"block_size": 2, "num_blocks": [1, 1, 1, 1], "base_width": 16},
    "resmlp_s12_8": {"num_blocks": 2, "hidden_dim": 16},
    "nfnet_f4_plus": {"num_blocks": [1, 1, 1, 1], "widths": [24, 32, 32, 32], "group_width": 8},
    "efficientnet_b6_wide": {"width": 0.25, "depth": 0.3},
    "lenet_5": {"output": "linear"},
}


def backbone(name: str, *, image_size: int, num_classes: int = 7) -> nn.Module:
    """With random numbers in the head, too."""
    torch.manual_seed(0)
    if name in (SWIN, DEIT) or name.startswith("resnet"):
        model = timm_backbone(timm_name=name, num_classes=num_classes, image_size=image_size)
    else:
        overrides = OVERRIDES.get(name)
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
        ("halonet_h3", 64, ("F", 2, 2)),
        ("resmlp_s12_8", 32, (16, "F")),
        ("nfnet_f4_plus", 64, ("F", 2, 2)),
        ("efficientnet_b6_wide", 64, ("F", 2, 2)),
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


@pytest.mark.parametrize(("name", "image_size"), [("mixer_digits", 8), ("convmixer_96_4", 32)])
def test_a_compiler_sees_the_whole_of_a_training_step(name: str, image_size: int) -> None:
    model, images = backbone(name, image_size=image_size).train(), torch.randn(2, 3, image_size, image_size)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="eager")
    for each in (model, compiled):
        each(images).square().mean().backward()
    for mine, other in zip(model.parameters(), compiled.parameters(), strict=True):
        if mine.ndim > 1:  # biases in front of a normalisation have no gradient but rounding
            torch.testing.assert_close(
                other.grad, mine.grad, rtol=1e-3, atol=1e-4 * float(mine.grad.abs().max())
            )


@pytest.mark.parametrize(
    ("name", "image_size"), [("mixer_digits", 8), ("convmixer_96_4", 8), ("resmlp_s12_8", 32)]
)
@torch.no_grad()
def test_a_graph_of_torch_fx_computes_the_same(name: str, image_size: int) -> None:
    model, images = backbone(name, image_size=image_size), torch.randn(2, 3, image_size, image_size)
    graph = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(graph(images), model(images), rtol=1e-4, atol=1e-5)
