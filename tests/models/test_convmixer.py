"""ConvMixer against the paper's code in a few lines and against timm; its stochastic depth and image sizes."""

from __future__ import annotations

import pytest
import torch
from timm.models.convmixer import ConvMixer as TimmConvMixer
from torch import nn

from mixer_lightning.models.convmixer import ConvMixer

ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU}


def small_convmixer(**changes: object) -> ConvMixer:
    """A ConvMixer on 12x12 images whose BatchNorms have seen some images."""
    torch.manual_seed(0)
    sizes = {"dim": 16, "depth": 3, "kernel_size": 5, "patch_size": 2, "num_classes": 7, "image_size": 12}
    model = ConvMixer(**{**sizes, **changes})
    with torch.no_grad():
        for _ in range(3):
            model.train()(torch.randn(8, 3, 12, 12))
    return model.eval()


class Residual(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fn(x) + x


def reference(*, h: int, d: int, k: int, p: int, n: int, sigma: type[nn.Module]) -> nn.Sequential:
    """The equations of arXiv 2201.09792 as one Sequential, numbered like the authors' checkpoints."""

    def after(layer: nn.Module) -> list[nn.Module]:
        return [layer, sigma(), nn.BatchNorm2d(h)]

    blocks = [
        nn.Sequential(
            Residual(nn.Sequential(*after(nn.Conv2d(h, h, k, groups=h, padding="same")))),
            *after(nn.Conv2d(h, h, 1)),
        )
        for _ in range(d)
    ]
    stem = after(nn.Conv2d(3, h, p, stride=p))
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(h, n))


@pytest.mark.parametrize("kernel_size", [5, 8])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_logits_are_those_of_the_papers_code(activation: str, kernel_size: int) -> None:
    model = small_convmixer(activation=activation, kernel_size=kernel_size)
    theirs = reference(h=16, d=3, k=kernel_size, p=2, n=7, sigma=ACTIVATIONS[activation])
    ours = model.state_dict()
    # Same layers in the same order, under other names.
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.values(), strict=True)))
    images = torch.randn(4, 3, 12, 12)
    with torch.no_grad():
        torch.testing.assert_close(model(images), theirs.eval()(images))
        torch.testing.assert_close(model.train()(images), theirs.train()(images))


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_logits_are_those_of_timm(activation: str) -> None:
    model = small_convmixer(activation=activation)
    theirs = TimmConvMixer(
        16, 3, kernel_size=5, patch_size=2, num_classes=7, act_layer=ACTIVATIONS[activation]
    )
    theirs.load_state_dict(model.state_dict())  # strict: the names are timm's
    images = torch.randn(4, 3, 12, 12)
    with torch.no_grad():
        torch.testing.assert_close(model(images), theirs.eval()(images))
        torch.testing.assert_close(model.forward_features(images), theirs.forward_features(images))


def test_initial_numbers_are_torchs_own() -> None:
    torch.manual_seed(3)
    model = ConvMixer(dim=16, depth=2, kernel_size=5, patch_size=2, num_classes=7, image_size=12)
    torch.manual_seed(3)
    theirs = TimmConvMixer(16, 2, kernel_size=5, patch_size=2, num_classes=7)  # draws in the same order
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_head_bias_is_added_to_the_initial_bias() -> None:
    zero, shifted = small_convmixer(), small_convmixer(head_bias=-6.9)
    torch.testing.assert_close(shifted.head.bias, zero.head.bias - 6.9)


def test_drop_rates_grow_linearly_from_zero() -> None:
    model = small_convmixer(depth=3, stochastic_depth=0.1)
    assert [block[0].drop_rate for block in model.blocks] == pytest.approx([0, 0.05, 0.1])


def test_stochastic_depth_drops_the_depthwise_branch_and_rescales() -> None:
    residual = small_convmixer(depth=2, stochastic_depth=0.25).blocks[1][0]
    residual.fn = nn.Identity()  # then the sum is x, or x + x / .75
    x = torch.ones(4000, 1, 2, 2)
    torch.manual_seed(0)
    y = residual.train()(x)
    kept = y[:, 0, 0, 0] > 1
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.03)
    torch.testing.assert_close(y, torch.where(kept[:, None, None, None], 1 + 1 / 0.75, 1.0).expand_as(y))
    assert torch.equal(residual.eval()(x), 2 * x)


def test_a_branch_is_seen_alone() -> None:
    model, images = small_convmixer(), torch.randn(2, 3, 12, 12)
    theirs = TimmConvMixer(16, 3, kernel_size=5, patch_size=2, num_classes=7).eval()
    theirs.load_state_dict(model.state_dict())
    seen: list[torch.Tensor] = []
    for each in (model, theirs):
        each.blocks[1][0].fn.register_forward_hook(lambda *given: seen.append(given[-1]))
    with torch.no_grad():
        torch.testing.assert_close(model(images), theirs(images))
    torch.testing.assert_close(*seen)


def test_image_size_must_be_a_multiple_of_the_patch() -> None:
    with pytest.raises(ValueError, match="image_size 13 is not a multiple of patch_size 2: 12 and 14 work"):
        small_convmixer(image_size=13)


def test_other_activations_are_refused() -> None:
    with pytest.raises(ValueError, match="activation must be gelu or relu, found 'swish'"):
        small_convmixer(activation="swish")


def test_other_image_sizes_run_through_trained_weights() -> None:
    with torch.no_grad():
        assert small_convmixer()(torch.randn(1, 3, 20, 16)).shape == (1, 7)
