"""Both AlexNets: the one of 2012 against its paper, the single column against torchvision's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from mixer_lightning.checkpoints.load import load
from mixer_lightning.models.alexnet import AlexNet
from mixer_lightning.models.alexnet2012 import AlexNet2012
from mixer_lightning.optim.groups import layer_numbers


@pytest.fixture(scope="module")
def alexnet_2012() -> AlexNet2012:
    """Of seven classes, for the smallest images."""
    torch.manual_seed(0)
    return AlexNet2012(num_classes=7, image_size=63)


def response_norm(a: Tensor) -> Tensor:
    """Section 3.3: b_i = a_i / (2 + 1e-4 sum over the 5 maps around i of a_j^2)^0.75."""
    maps = range(a.shape[1])
    sums = [sum(a[:, j] ** 2 for j in maps if abs(i - j) <= 2) for i in maps]
    return a / (2 + 1e-4 * torch.stack(sums, dim=1)) ** 0.75


def in_two_halves(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Each half of the kernels on its half of the maps, as on two GPUs."""
    halves = zip(x.chunk(2, dim=1), conv.weight.chunk(2), conv.bias.chunk(2), strict=True)
    return torch.cat([F.conv2d(h, w, b, padding=conv.padding) for h, w, b in halves], dim=1)


@torch.no_grad()
def test_alexnet_2012_equals_the_paper(alexnet_2012: AlexNet2012) -> None:
    net = alexnet_2012.eval()
    images = 60 * torch.randn(2, 3, 63, 63)  # so large that the normalisation counts
    x = F.conv2d(images, net.conv1.weight, net.conv1.bias, stride=4, padding=2).relu()
    assert (response_norm(x) / x).nan_to_num(2**-0.75).sub(2**-0.75).abs().max() > 0.01
    x = F.max_pool2d(response_norm(x), 3, 2)
    x = F.max_pool2d(response_norm(in_two_halves(net.conv2, x).relu()), 3, 2)
    x = F.conv2d(x, net.conv3.weight, net.conv3.bias, padding=1).relu()
    x = F.max_pool2d(in_two_halves(net.conv5, in_two_halves(net.conv4, x).relu()).relu(), 3, 2)
    torch.testing.assert_close(net.forward_features(images), x)
    for layer in (net.fc6, net.fc7):
        x = (x.flatten(1) @ layer.weight.T + layer.bias).relu()
    torch.testing.assert_close(net(images), x @ net.fc8.weight.T + net.fc8.bias)


@torch.no_grad()
def test_alexnet_2012_drops_half_of_the_hidden_units_in_training(alexnet_2012: AlexNet2012) -> None:
    net, features = alexnet_2012.train(), torch.ones(2, 256, 1, 1)
    torch.manual_seed(3)
    hidden = net.forward_head(features, pre_logits=True)
    torch.manual_seed(3)
    first = F.dropout(net.fc6(features.flatten(1)).relu(), 0.5)
    assert torch.equal(hidden, F.dropout(net.fc7(first).relu(), 0.5))
    assert (first == 0).float().mean() == pytest.approx(0.5, abs=0.05)


def test_alexnet_2012_starts_as_the_paper_says(alexnet_2012: AlexNet2012) -> None:
    for name, module in alexnet_2012.named_children():
        if hasattr(module, "bias"):
            assert module.weight.detach().std() == pytest.approx(0.01, rel=0.05)
            is_one = name in {"conv2", "conv4", "conv5", "fc6", "fc7"}
            assert torch.equal(module.bias, torch.full_like(module.bias, float(is_one))), name


def test_every_parameter_of_alexnet_2012_gets_a_gradient(alexnet_2012: AlexNet2012) -> None:
    torch.manual_seed(0)
    F.cross_entropy(alexnet_2012.eval()(torch.randn(4, 3, 63, 63)), torch.arange(4)).backward()
    assert all(parameter.grad.any() for parameter in alexnet_2012.parameters())
    alexnet_2012.zero_grad()


def test_alexnet_2012_has_55_27_13_and_6_units_a_side() -> None:
    with torch.device("meta"):
        net = AlexNet2012(num_classes=1000, image_size=224)
        images = torch.empty(1, 3, 224, 224)
        assert net.conv1(images).shape[-1] == 55
        assert net.forward_features(images).shape == (1, 256, 6, 6)


@torch.no_grad()
def test_weights_of_torchvision_load_and_give_its_logits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.alexnet().eval()
    torch.save(theirs.state_dict(), tmp_path / "alexnet-owt-7be5be79.pth")
    with torch.device("meta"):
        ours = AlexNet(num_classes=1000, image_size=64).eval()
    ours.to_empty(device="cpu")
    report = load(ours, tmp_path / "alexnet-owt-7be5be79.pth")
    assert len(report.loaded) == 16
    for size in (64, 100):
        images = torch.randn(1, 3, size, size)
        assert torch.equal(ours(images), theirs(images))


def test_without_classes_logits_are_features() -> None:
    with torch.device("meta"):
        for build, parameters in ((AlexNet, 57_003_840), (AlexNet2012, 56_868_224)):
            net = build(num_classes=0, image_size=224)
            assert net(torch.empty(2, 3, 224, 224)).shape == (2, net.num_features)
            assert sum(p.numel() for p in net.parameters()) == parameters


def test_layers_are_eight() -> None:
    with torch.device("meta"):
        for build in (AlexNet, AlexNet2012):
            numbers = layer_numbers(build(num_classes=5, image_size=224))
            assert list(numbers.values()) == [layer for layer in range(8) for _ in ("weight", "bias")]


@pytest.mark.parametrize("build", [AlexNet, AlexNet2012])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 62}, "image_size 62 is too small for AlexNet.* 63 and more work"),
        ({"image_size": 64, "stochastic_depth": 0.1}, "no stochastic depth: use stochastic_depth=0, not 0.1"),
        ({"image_size": 64, "dropout": 1.0}, "dropout must be"),
    ],
)
def test_what_they_refuse(build: type, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(num_classes=10, **arguments)
