"""ResMLP: timm's logits from timm's weights, the official initialisation, stochastic depth of one rate."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from mixer_lightning.api import create_model
from mixer_lightning.models.presets import list_models
from mixer_lightning.models.resmlp import ResMLP

TINY = {"patch_size": 4, "num_blocks": 3, "hidden_dim": 24, "layer_scale": 0.1}


def tiny(**settings: object) -> ResMLP:
    torch.manual_seed(0)
    return ResMLP(**{**TINY, "num_classes": 5, "image_size": 16, **settings})


@pytest.mark.parametrize("name", ["resmlp_12_224", "resmlp_24_224"])
@torch.no_grad()
def test_logits_are_timms(name: str) -> None:
    theirs = timm.create_model(name, img_size=32, num_classes=5, drop_path_rate=0.0).eval()
    torch.manual_seed(0)
    for tensor in theirs.state_dict().values():  # timm starts with a head of zeros, and scales of 1e-4
        tensor.add_(0.1 * torch.randn_like(tensor))
    blocks = 12 if "12" in name else 24
    ours = tiny(patch_size=16, num_blocks=blocks, hidden_dim=384, image_size=32).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert theirs(images).std() > 0.1
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)
    features = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
    torch.testing.assert_close(
        ours.forward_head(ours.forward_features(images), pre_logits=True), features, rtol=1e-4, atol=1e-4
    )


# facebookresearch/deit, resmlp_models.py, init_scale; of S12/8 and B24/16 by the paper's rule for their depths.
LAYER_SCALE = {
    "resmlp_s12": 0.1,
    "resmlp_s12_8": 0.1,
    "resmlp_s24": 1e-5,
    "resmlp_b24_16": 1e-6,
    "resmlp_b24_8": 1e-6,
}


@pytest.mark.parametrize("name", list_models("resmlp*"))
def test_branches_start_as_the_papers(name: str) -> None:
    model = create_model(name, image_size=16, overrides={"num_blocks": 2, "hidden_dim": 8}, num_classes=3)
    for block in model.blocks:
        for scale in (block.ls1, block.ls2):
            assert torch.equal(scale, torch.full((8,), LAYER_SCALE[name]))


def test_linear_layers_start_as_the_papers() -> None:
    model = tiny(hidden_dim=64, head_bias=-2.0)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.15), name
            assert module.weight.mean().item() == pytest.approx(0, abs=0.004), name
            expected = -2.0 if name == "head" else 0.0
            assert torch.equal(module.bias, torch.full_like(module.bias, expected)), name
    for name, parameter in model.named_parameters():
        if name.endswith(("alpha", "beta")):
            assert (parameter == float(name.endswith("alpha"))).all(), name
    bound = (3 * 4 * 4) ** -0.5  # torch's own, which the official code leaves to the convolution
    assert 0.9 * bound < model.stem.proj.weight.abs().max().item() <= bound


def test_every_parameter_gets_a_gradient() -> None:
    model = tiny(stochastic_depth=0.2).train()
    nn.functional.cross_entropy(model(torch.randn(8, 3, 16, 16)), torch.arange(8) % 5).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_stochastic_depth_is_the_same_in_all_blocks() -> None:
    model = tiny(stochastic_depth=0.75).train()
    assert [block.drop_rate for block in model.blocks] == [0.75] * 3
    branch = model.blocks[0].drop(torch.ones(4000, 2, 3))
    assert set(branch.unique().tolist()) == {0.0, 4.0}
    assert (branch == branch[:, :1, :1]).all()
    assert branch.mean().item() == pytest.approx(1.0, abs=0.15)
    model.eval()
    assert torch.equal(model.blocks[0].drop(branch), branch)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="takes images of 16x16, found 16x20"):
        tiny()(torch.randn(1, 3, 16, 20))
    with pytest.raises(ValueError, match="image_size 18 is not a multiple of patch_size 4: 16 and 20 work"):
        tiny(image_size=18)
