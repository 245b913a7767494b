"""ConvMixer with parts exchanged: as published it is ConvMixer, otherwise its equations with that part changed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mixer_lightning.checkpoints.describe import describe
from mixer_lightning.models.convmixer import ConvMixer
from mixer_lightning.models.convmixer_ablation import AblatedConvMixer

SIZES = {"dim": 16, "depth": 3, "kernel_size": 5, "patch_size": 2, "num_classes": 7, "image_size": 12}


def ablated(**changes: object) -> AblatedConvMixer:
    torch.manual_seed(0)
    return AblatedConvMixer(**{**SIZES, **changes})


def test_as_published_it_is_convmixer() -> None:
    model = ablated(head_bias=-2.0)
    torch.manual_seed(0)
    theirs = ConvMixer(**SIZES, head_bias=-2.0)
    assert model.state_dict().keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    images = torch.randn(4, 3, 12, 12)
    torch.testing.assert_close(model(images), theirs(images))


def layer_norm(x: Tensor, module: nn.Module) -> Tensor:
    """Over the channels of each position of [B, h, H, W]."""
    mean = x.mean(dim=1, keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=1, keepdim=True)
    scale, shift = (each[:, None, None] for each in (module.weight, module.bias))
    return (x - mean) / (variance + 1e-5).sqrt() * scale + shift


@pytest.mark.parametrize("residual", ["depthwise", "both", "none"])
@pytest.mark.parametrize("normalization", ["batch", "layer", "none"])
def test_the_equations_with_a_part_exchanged(residual: str, normalization: str) -> None:
    model = ablated(residual=residual, normalization=normalization, activation="relu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    leaves = [each for each in model.modules() if not list(each.children())]
    convs = [each for each in leaves if isinstance(each, nn.Conv2d)]
    norms = [each for each in leaves if isinstance(each, nn.BatchNorm2d | nn.LayerNorm)] or [None] * len(
        convs
    )
    assert len(convs) == len(norms) == 1 + 2 * SIZES["depth"]

    def step(x: Tensor, number: int) -> Tensor:
        x = nn.functional.relu(convs[number](x))
        if normalization == "layer":
            return layer_norm(x, norms[number])
        return norms[number](x) if norms[number] is not None else x

    images = torch.randn(4, 3, 12, 12)
    model.eval()
    with torch.no_grad():
        z = step(images, 0)
        for block in range(SIZES["depth"]):
            z = step(z, 1 + 2 * block) + (z if residual != "none" else 0)
            z = step(z, 2 + 2 * block) + (z if residual == "both" else 0)
        torch.testing.assert_close(model(images), model.head(z.mean(dim=(2, 3))))
    # whoever finds these weights without their recipe does not take them for a ConvMixer's
    is_published = residual == "depthwise" and normalization == "batch"
    assert (describe(model.state_dict()) is not None) == is_published


def test_stochastic_depth_needs_a_branch() -> None:
    with pytest.raises(ValueError, match="residual=none leaves no branch"):
        ablated(residual="none", stochastic_depth=0.1)
    with pytest.raises(ValueError, match="normalization must be one of batch, layer, none, found 'group'"):
        ablated(normalization="group")
