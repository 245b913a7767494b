"""The isometric MobileNetV3 against a plain function of MobileNetV3-Large's table with strides of 1."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixer_lightning.models.mobilenetv3_isometric import mobilenetv3_isometric

# arXiv 1905.02244, table 1: kernel, expanded, out, units of squeeze-and-excitation (a quarter of the expanded, in whole
# eights, of which 18 is rounded up lest it lose a tenth), h-swish; strides are 1 here.
TABLE = [
    (3, 16, 16, 0, False),
    (3, 64, 24, 0, False),
    (3, 72, 24, 0, False),
    (5, 72, 40, 24, False),
    (5, 120, 40, 32, False),
    (5, 120, 40, 32, False),
    (3, 240, 80, 0, True),
    (3, 200, 80, 0, True),
    (3, 184, 80, 0, True),
    (3, 184, 80, 0, True),
    (3, 480, 112, 120, True),
    (3, 672, 112, 168, True),
    (5, 672, 160, 168, True),
    (5, 960, 160, 240, True),
    (5, 960, 160, 240, True),
]


class Tensors:
    """The tensors of a state dict by shape, in their order: whoever takes one says what it has to be."""

    def __init__(self, model: nn.Module) -> None:
        self.left = [t for k, t in model.state_dict().items() if not k.endswith("num_batches_tracked")]

    def take(self, *shape: int) -> Tensor:
        tensor = self.left.pop(0)
        assert tensor.shape == shape
        return tensor


def batch_norm(x: Tensor, tensors: Tensors) -> Tensor:
    dim = x.shape[1]
    scale, shift, mean, var = (tensors.take(dim).reshape(-1, 1, 1) for _ in range(4))
    return (x - mean) / (var + 1e-5).sqrt() * scale + shift


def hard_sigmoid(x: Tensor) -> Tensor:
    return (x + 3).clamp(0, 6) / 6


def reference(tensors: Tensors, images: Tensor, *, patch: int, is_large: bool) -> Tensor:
    """Logits [B, 7] at width 1."""

    def sigma(x: Tensor, *, is_swish: bool) -> Tensor:
        return x * hard_sigmoid(x) if is_swish and is_large else x.relu()

    x = F.conv2d(images, tensors.take(16, 3, patch, patch), stride=patch)
    x = sigma(batch_norm(x, tensors), is_swish=True)
    for i, (kernel, expanded, out, squeezed, is_swish) in enumerate(TABLE):
        dim, side = x.shape[1], kernel if is_large else 3
        y = x
        if i:  # the first block does not expand
            y = F.conv2d(y, tensors.take(expanded, dim, 1, 1))
            y = sigma(batch_norm(y, tensors), is_swish=is_swish)
        y = F.conv2d(y, tensors.take(expanded, 1, side, side), padding=side // 2, groups=expanded)
        y = sigma(batch_norm(y, tensors), is_swish=is_swish)
        if squeezed and is_large:
            weight, bias = tensors.take(squeezed, expanded, 1, 1), tensors.take(squeezed)
            gate = F.conv2d(y.mean((2, 3), keepdim=True), weight, bias).relu()
            weight, bias = tensors.take(expanded, squeezed, 1, 1), tensors.take(expanded)
            y = y * hard_sigmoid(F.conv2d(gate, weight, bias))
        y = batch_norm(F.conv2d(y, tensors.take(out, expanded, 1, 1)), tensors)
        x = x + y if dim == out else y
    x = sigma(batch_norm(F.conv2d(x, tensors.take(960, 160, 1, 1)), tensors), is_swish=True)
    assert x.shape[-1] == images.shape[-1] // patch
    pooled = x.mean((2, 3))
    x = sigma(pooled @ tensors.take(1280, 960, 1, 1).flatten(1).T + tensors.take(1280), is_swish=True)
    return x @ tensors.take(7, 1280).T + tensors.take(7)


@pytest.mark.parametrize("variant", ["large", "minimalistic"])
@torch.no_grad()
def test_equals_the_table_with_strides_of_1(variant: str) -> None:
    torch.manual_seed(0)
    model = mobilenetv3_isometric(variant=variant, patch_size=4, width=1.0, num_classes=7, image_size=16)
    model = model.double().eval()
    for name, tensor in model.state_dict().items():
        if "bn" in name and tensor.is_floating_point():
            tensor.uniform_(0.5, 2.0) if name.endswith(("weight", "var")) else tensor.normal_()
        elif tensor.ndim == 1 and tensor.is_floating_point():
            tensor.normal_()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    tensors = Tensors(model)
    expected = reference(tensors, images, patch=4, is_large=variant == "large")
    assert tensors.left == []
    torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize("variant", ["large", "minimalistic"])
def test_every_parameter_gets_a_gradient(variant: str) -> None:
    torch.manual_seed(0)
    model = mobilenetv3_isometric(
        variant=variant, patch_size=4, width=0.25, num_classes=5, image_size=16, stochastic_depth=0.1
    )
    F.cross_entropy(model(torch.randn(16, 3, 16, 16)), torch.arange(16) % 5).backward()
    missing = [name for name, parameter in model.named_parameters() if not parameter.grad.any()]
    assert missing == []


def test_stochastic_depth_grows_to_the_last_block() -> None:
    with torch.device("meta"):
        model = mobilenetv3_isometric(
            variant="large", patch_size=8, width=1.0, num_classes=5, image_size=32, stochastic_depth=0.2
        )
    rates = [module.drop_prob for module in model.modules() if getattr(module, "drop_prob", 0)]
    assert rates == sorted(rates)
    assert 0.15 < rates[-1] <= 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 30}, "image_size 30 is not a multiple of patch_size 8: 24 and 32 work"),
        ({"variant": "small"}, "variant must be large or minimalistic, found 'small'"),
        ({"width": 0.0}, "width must be above 0"),
    ],
)
def test_what_it_refuses(arguments: dict[str, object], message: str) -> None:
    given = {"variant": "large", "patch_size": 8, "width": 1.0, "num_classes": 5, "image_size": 32}
    with pytest.raises(ValueError, match=message):
        mobilenetv3_isometric(**(given | arguments))
