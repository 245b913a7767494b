"""WRN-d-k against a plain function of its paper."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixer_lightning.models.wide_resnet import WideResNet
from mixer_lightning.optim.groups import layer_numbers


def small(**changes: object) -> WideResNet:
    """WRN-10-1 (blocks of 16, 32 and 64), or with changes."""
    torch.manual_seed(0)
    return WideResNet(**{"depth": 10, "width": 1, "num_classes": 5, "image_size": 8, **changes})


def randomise(model: nn.Module) -> None:
    """Scales, shifts and statistics of BatchNorm that are not those of a new model."""
    for name, tensor in model.state_dict().items():
        if "norm" in name and tensor.is_floating_point():
            tensor.uniform_(0.5, 2.0) if name.endswith(("weight", "var")) else tensor.normal_()


def reference(p: dict[str, Tensor], images: Tensor, *, blocks: int, slope: float, epsilon: float) -> Tensor:
    """The pre-activation network of table 1, from its tensors; where a 1x1 kernel is there, it changes the shape."""

    def activated(x: Tensor, name: str) -> Tensor:
        mean, var, scale, shift = (
            p[f"{name}.{key}"].reshape(-1, 1, 1) for key in ("running_mean", "running_var", "weight", "bias")
        )
        y = (x - mean) / (var + epsilon).sqrt() * scale + shift
        return torch.where(y > 0, y, slope * y)

    x = F.conv2d(images, p["stem.weight"], padding=1)
    for i in range(3 * blocks):
        stride = 2 if i in (blocks, 2 * blocks) else 1
        y = activated(x, f"blocks.{i}.norm1")
        if (kernel := p.get(f"blocks.{i}.shortcut.weight")) is not None:
            x = F.conv2d(y, kernel, stride=stride)
        y = F.conv2d(y, p[f"blocks.{i}.conv1.weight"], stride=stride, padding=1)
        y = F.conv2d(activated(y, f"blocks.{i}.norm2"), p[f"blocks.{i}.conv2.weight"], padding=1)
        x = x + y
    features = activated(x, "norm").mean((2, 3))
    return features @ p["head.weight"].T + p["head.bias"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"depth": 16, "width": 2},
        {"width": 2, "stem_dim": 32, "negative_slope": 0.2, "bn_epsilon": 0.001, "head_dropout": 0.2},
    ],
)
@torch.no_grad()
def test_equals_the_paper(changes: dict[str, float]) -> None:
    model = small(**changes).double().eval()
    randomise(model)
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    expected = reference(
        model.state_dict(),
        images,
        blocks=(changes.get("depth", 10) - 4) // 6,
        slope=changes.get("negative_slope", 0.0),
        epsilon=changes.get("bn_epsilon", 1e-5),
    )
    torch.testing.assert_close(model(images), expected)


def test_only_blocks_that_change_the_shape_project() -> None:
    with torch.device("meta"):
        classic = WideResNet(depth=28, width=2, num_classes=10, image_size=32)
        wide_stem = WideResNet(depth=28, width=2, stem_dim=32, num_classes=10, image_size=32)
    assert [i for i, block in enumerate(classic.blocks) if block.shortcut is not None] == [0, 4, 8]
    assert [i for i, block in enumerate(wide_stem.blocks) if block.shortcut is not None] == [4, 8]
    assert classic.forward_features(torch.empty(1, 3, 32, 32, device="meta")).shape == (1, 128, 8, 8)


def test_every_parameter_gets_a_gradient() -> None:
    model = small(negative_slope=0.2, head_dropout=0.2, stochastic_depth=0.2)
    F.cross_entropy(model(torch.randn(16, 3, 8, 8)), torch.arange(16) % 5).backward()
    assert all(parameter.grad.any() for parameter in model.parameters())


def test_dropout_stands_before_the_head_and_in_training_alone() -> None:
    model = small(head_dropout=0.2)
    features = torch.ones(50, 64, 2, 2)
    pooled = model.train().forward_head(features, pre_logits=True)
    assert (pooled == 0).float().mean() == pytest.approx(0.2, abs=0.05)
    assert pooled.max() == pytest.approx(1 / 0.8)
    assert torch.equal(model.eval().forward_head(features, pre_logits=True), torch.ones(50, 64))


def test_weights_start_with_variance_2_by_fan_out() -> None:
    model = small(width=4)
    for conv, fan_out in ((model.blocks[0].conv1, 9 * 64), (model.blocks[2].shortcut, 256)):
        assert conv.weight.detach().std() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
    assert small(head_bias=-2.0).head.bias.tolist() == [-2.0] * 5


def test_layers_are_counted_from_the_stem() -> None:
    with torch.device("meta"):
        numbers = layer_numbers(small(depth=16))
    assert numbers["stem.weight"] == 0
    assert numbers["blocks.0.conv1.weight"] == 1
    assert numbers["blocks.5.conv2.weight"] == numbers["norm.weight"] == 6
    assert numbers["head.weight"] == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 26}, r"depth 26 is not 6 n \+ 4: 10, 16, 22, 28"),
        ({"depth": 4}, "depth 4 is not"),
        ({"image_size": 3}, "image_size 3 cannot be halved twice: 4 and more work"),
        ({"negative_slope": -0.1}, "negative_slope must be at least 0"),
        ({"bn_momentum": 0.0}, "bn_momentum must be above 0"),
    ],
)
def test_what_it_refuses(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)
