"""NFNet: timm's logits where timm can say the sizes; the stem, wide bottlenecks and drop rates where it cannot."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models.nfnet import NfCfg, NormFreeNet
from torch import nn

from mixer_lightning.api import create_model
from mixer_lightning.models.nfnet import nfnet

TINY = {"num_blocks": [2, 1, 1, 2], "widths": [24, 32, 32, 32], "group_width": 8, "dropout": 0.0}


def tiny(**settings: object) -> nn.Module:
    torch.manual_seed(0)
    model = nfnet(**{**TINY, "num_classes": 5, "image_size": 64, **settings})
    randomise(model)
    return model


def randomise(model: nn.Module) -> None:
    """Also the gains of the branches, which start from zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


@torch.no_grad()
def test_logits_are_timms() -> None:
    config = NfCfg(
        depths=(1, 1, 1, 1),
        channels=(256, 256, 256, 256),
        stem_type="deep_quad",
        stem_chs=128,
        group_size=128,
        bottle_ratio=0.5,
        extra_conv=True,
        gamma_in_act=True,
        same_padding=True,
        skipinit=True,
        num_features=512,
        act_layer="gelu",
        attn_layer="se",
        attn_kwargs={"rd_ratio": 0.5},
    )
    theirs = NormFreeNet(config, num_classes=5).eval()
    sizes = {"num_blocks": [1] * 4, "widths": [256] * 4, "group_width": 128}
    ours = tiny(**sizes).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert theirs(images).std() > 0.1
    torch.testing.assert_close(ours(images), theirs(images))


def test_f4_has_timms_tensors() -> None:
    with torch.device("meta"):
        theirs = timm.create_model("dm_nfnet_f4")
        widths = {"widths": [256, 512, 1536, 1536]}
        ours = create_model("nfnet_f4_plus", overrides=widths)
    shapes = [{key: t.shape for key, t in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]


def test_the_stem_and_the_first_bottlenecks_of_f4_plus() -> None:
    with torch.device("meta"):
        model = create_model("nfnet_f4_plus")
    convolutions = [module for module in model.stem if isinstance(module, nn.Conv2d)]
    assert [(conv.out_channels, conv.stride[0]) for conv in convolutions] == [
        (16, 2),
        (32, 1),
        (64, 1),
        (192, 2),
    ]
    inside = [(s[0].conv2.out_channels, s[0].conv2.groups, s[0].conv2b.groups) for s in model.stages]
    assert inside == [(192, 1, 1), (384, 3, 3), (1024, 8, 8), (1024, 8, 8)]
    assert (model.num_features, model.head.drop.p) == (4096, 0.5)


def test_new_convolutions_start_as_all_others() -> None:
    torch.manual_seed(0)
    model = nfnet(**TINY, num_classes=5, image_size=64, head_bias=-2.0)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx(fan_in**-0.5, rel=0.3), name
            assert not module.bias.any(), name
    assert torch.equal(model.head.fc.bias, torch.full((5,), -2.0))


def test_every_parameter_gets_a_gradient() -> None:
    model = tiny(dropout=0.1, stochastic_depth=0.1).train()
    nn.functional.cross_entropy(model(torch.randn(8, 3, 64, 64)), torch.arange(8) % 5).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_drop_rates_are_the_official_ones() -> None:
    model = tiny(stochastic_depth=0.6).train()  # nfnets/nfnet.py: stochdepth_rate * index / num_blocks
    paths = [block.drop_path for stage in model.stages for block in stage]
    assert [getattr(path, "drop_prob", 0) for path in paths] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    dropped = paths[5](torch.ones(400, 1, 1, 1))  # nfnets/base.py: scale_by_keep=False
    assert set(dropped.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("widths", [[8, 32, 32, 32], [32, 34, 32, 32], [33, 32, 32, 32]])
def test_groups_must_divide_the_bottlenecks(widths: list[int]) -> None:
    with pytest.raises(ValueError, match="does not divide into groups of 8 or wider"):
        tiny(widths=widths)
