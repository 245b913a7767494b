"""EfficientNet: timm's own for the factors that timm has, so that B6-Wide is the same with others."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from mixer_lightning.api import create_model
from mixer_lightning.models.efficientnet import efficientnet


def tiny(**settings: object) -> nn.Module:
    torch.manual_seed(0)
    arguments = {"width": 0.25, "depth": 0.5, "dropout": 0.0, "num_classes": 5, "image_size": 32}
    return efficientnet(**{**arguments, **settings})


@torch.no_grad()
def test_logits_are_timms() -> None:
    theirs = timm.create_model("tf_efficientnet_b1", num_classes=5).eval()
    ours = tiny(width=1.0, depth=1.1, dropout=0.2).eval()
    for tensor in ours.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.1 * torch.rand_like(tensor))
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 40, 40)
    assert theirs(images).std() > 0.01
    torch.testing.assert_close(ours(images), theirs(images))
    for a, b in zip(ours.modules(), theirs.modules(), strict=True):
        if isinstance(a, nn.BatchNorm2d):
            assert (a.eps, a.momentum) == (b.eps, 0.01)  # decay .99 in meta_pseudo_labels; timm trains at .9


def test_l2_has_timms_tensors() -> None:
    with torch.device("meta"):
        theirs = timm.create_model("tf_efficientnet_l2")
        ours = create_model("efficientnet_b6_wide", overrides={"width": 4.3, "depth": 5.3})
    shapes = [{key: t.shape for key, t in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]


def test_every_parameter_gets_a_gradient() -> None:
    model = tiny(dropout=0.1, stochastic_depth=0.1).train()
    nn.functional.cross_entropy(model(torch.randn(8, 3, 64, 64)), torch.arange(8) % 5).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_drop_rates_are_the_official_ones() -> None:
    model = tiny(depth=0.3, dropout=0.5, stochastic_depth=0.7)  # one block a stage
    blocks = [block for stage in model.blocks for block in stage]
    rates = [getattr(block.drop_path, "drop_prob", 0) for block in blocks]
    # meta_pseudo_labels/modeling.py: rate * index / num_blocks
    assert rates == pytest.approx([0.7 * i / len(blocks) for i in range(len(blocks))])
    assert model.drop_rate == 0.5


def test_the_head_bias_is_the_one_told() -> None:
    assert torch.equal(tiny(head_bias=-2.0).classifier.bias, torch.full((5,), -2.0))
