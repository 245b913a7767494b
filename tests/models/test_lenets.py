"""LeCun's networks of 1989 and 1998 against their papers, written out in plain functions."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixer_lightning.checkpoints.load import load
from mixer_lightning.checkpoints.restore import restore
from mixer_lightning.checkpoints.save import save_own
from mixer_lightning.models.lecun1989 import H2_TABLE, LeCun1989
from mixer_lightning.models.lenet5 import C3_TABLE, LeNet5, squash

# Table I of the paper, a row for each map of S2.
TABLE_I = [
    "X...XXX..XXXX.XX",
    "XX...XXX..XXXX.X",
    "XXX...XXX..X.XXX",
    ".XXX..XXXX..X.XX",
    "..XXX..XXXX.XX.X",
    "...XXX..XXXX.XXX",
]


def grey(batch: int, side: int) -> Tensor:
    """An image in three channels that are not the same, and its mean of 1 channel beside it."""
    torch.manual_seed(5)
    return torch.randn(batch, 3, side, side)


def one_by_one(x: Tensor, weight: Tensor, table: list[list[int]], *, stride: int) -> Tensor:
    """A convolution of each output map alone, on the maps that it sees alone."""
    kernels = iter(weight)
    maps = [
        sum(F.conv2d(x[:, seen : seen + 1], next(kernels)[None, None], stride=stride) for seen in maps_seen)
        for maps_seen in table
    ]
    return torch.cat(maps, dim=1)


def test_table_of_c3_is_table_i() -> None:
    assert [[row for row in range(6) if TABLE_I[row][column] == "X"] for column in range(16)] == [
        sorted(maps) for maps in C3_TABLE
    ]


def test_each_map_of_h2_sees_eight_of_twelve() -> None:
    assert [len(set(maps)) for maps in H2_TABLE] == [8] * 12
    assert set(itertools.chain(*H2_TABLE)) == set(range(12))


def test_lecun_1989_equals_the_paper() -> None:
    torch.manual_seed(0)
    model = LeCun1989(num_classes=10, image_size=16).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # biases too
    images = grey(2, 16).double()
    p = dict(model.named_parameters())
    x = images.mean(1, keepdim=True)
    border = F.pad(x, (2, 2, 2, 2), value=-1)
    h1 = torch.empty(2, 12, 8, 8, dtype=torch.float64)
    bias = p["h1.bias"].reshape(12, 8, 8)
    for m, row, column in itertools.product(range(12), range(8), range(8)):
        window = border[:, 0, 2 * row : 2 * row + 5, 2 * column : 2 * column + 5]
        h1[:, m, row, column] = ((window * p["h1.conv.weight"][m]).sum((1, 2)) + bias[m, row, column]).tanh()
    border = F.pad(h1, (2, 2, 2, 2), value=-1)
    sums = one_by_one(border, p["h2.conv.weight"], H2_TABLE, stride=2)
    h2 = (sums + p["h2.bias"].reshape(12, 4, 4)).tanh()
    h3 = (h2.reshape(2, -1) @ p["h3.weight"].T + p["h3.bias"]).tanh()
    torch.testing.assert_close(model.forward_features(images), h2)
    torch.testing.assert_close(model(images), h3 @ p["head.weight"].T + p["head.bias"])


def test_layers_of_lecun_1989_have_the_papers_counts() -> None:
    model = LeCun1989(num_classes=10, image_size=16)
    layers = (model.h1, model.h2, model.h3, model.head)
    assert [sum(p.numel() for p in layer.parameters()) for layer in layers] == [1068, 2592, 5790, 310]


def test_lenet_5_equals_the_paper() -> None:
    torch.manual_seed(0)
    model = LeNet5(num_classes=10, image_size=32).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    images = grey(2, 32).double()
    p = dict(model.named_parameters())

    def pool(x: Tensor, name: str) -> Tensor:
        total = x[..., 0::2, 0::2] + x[..., 0::2, 1::2] + x[..., 1::2, 0::2] + x[..., 1::2, 1::2]
        return squash(total * p[f"{name}.weight"].reshape(-1, 1, 1) + p[f"{name}.bias"].reshape(-1, 1, 1))

    x = squash(F.conv2d(images.mean(1, keepdim=True), p["c1.weight"], p["c1.bias"]))
    x = pool(x, "s2")
    x = squash(one_by_one(x, p["c3.weight"], C3_TABLE, stride=1) + p["c3.bias"].reshape(16, 1, 1))
    x = pool(x, "s4")
    assert x.shape == (2, 16, 5, 5)
    x = squash(x.reshape(2, 400) @ p["c5.weight"].reshape(120, 400).T + p["c5.bias"])
    f6 = squash(x @ p["f6.weight"].T + p["f6.bias"])
    features = model.forward_features(images)
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), f6)
    penalties = torch.stack([((f6 - code) ** 2).sum(1) for code in model.head.codes.double()], dim=1)
    torch.testing.assert_close(model(images), -penalties, check_dtype=False, rtol=1e-5, atol=1e-4)


def test_layers_of_lenet_5_have_the_papers_counts() -> None:
    model = LeNet5(num_classes=10, image_size=32)
    layers = (model.c1, model.s2, model.c3, model.s4, model.c5, model.f6, model.head)
    counts = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    assert counts == [156, 12, 1516, 32, 48_120, 10_164, 0]


def test_squash_goes_through_one() -> None:
    assert squash(torch.tensor(1.0)) == pytest.approx(1.0, abs=1e-4)
    assert squash(torch.tensor(-30.0)) == pytest.approx(-1.7159)


def test_codes_are_signs_and_the_same_in_every_model() -> None:
    codes = LeNet5(num_classes=1000, image_size=32).head.codes
    torch.manual_seed(1)
    assert torch.equal(LeNet5(num_classes=1000, image_size=32).head.codes, codes)
    assert codes.abs().eq(1).all()
    assert len({tuple(code) for code in codes.tolist()}) == 1000
    assert (codes[:10].sum(0).abs() < 10).any()
    assert "head.codes" not in LeNet5(num_classes=10, image_size=32).state_dict()


def test_the_code_itself_is_its_class_without_penalty() -> None:
    head = LeNet5(num_classes=10, image_size=32).head
    logits = head(head.codes)
    assert torch.equal(logits.diagonal(), torch.zeros(10))
    assert torch.equal(logits.argmax(1), torch.arange(10))
    # Two codes differ by 2 where they differ.
    assert logits[0, 1] == -4 * (head.codes[0] != head.codes[1]).sum()


@pytest.mark.parametrize("output", ["rbf", "linear"])
@pytest.mark.parametrize("image_size", [16, 32, 40])
def test_every_parameter_of_lenet_5_gets_a_gradient(output: str, image_size: int) -> None:
    torch.manual_seed(0)
    model = LeNet5(output=output, num_classes=5, image_size=image_size)
    loss = F.cross_entropy(model(torch.randn(4, 3, image_size, image_size)), torch.arange(4))
    loss.backward()
    assert all(parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("image_size", [4, 8, 16])
def test_every_parameter_of_lecun_1989_gets_a_gradient(image_size: int) -> None:
    torch.manual_seed(0)
    model = LeCun1989(num_classes=5, image_size=image_size)
    F.cross_entropy(model(torch.randn(4, 3, image_size, image_size)), torch.arange(4)).backward()
    assert all(parameter.grad.any() for parameter in model.parameters())


def test_weights_start_uniform_by_the_inputs_of_their_unit() -> None:
    torch.manual_seed(0)
    model = LeNet5(num_classes=10, image_size=32)
    for kernels, fan_in in ((model.c3.weight[:18], 75), (model.c3.weight[-6:], 150), (model.f6.weight, 120)):
        assert kernels.abs().max() < 2.4 / fan_in
        assert kernels.detach().std() == pytest.approx(2.4 / fan_in / math.sqrt(3), rel=0.15)


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (LeNet5, {"image_size": 30}, "image_size 30 .* 28 and 32 work, and 32 is the size of the paper"),
        (LeNet5, {"image_size": 8}, "image_size 8 .* 16 works"),
        (LeNet5, {"image_size": 32, "head_bias": -1.0}, "no bias: use head_bias=0, not -1.0"),
        (LeNet5, {"image_size": 32, "stochastic_depth": 0.1}, "no stochastic depth: use stochastic_depth=0"),
        (LeNet5, {"image_size": 32, "output": "softmax"}, "output must be rbf or linear"),
        (LeCun1989, {"image_size": 15}, "image_size 15 .* 12 and 16 work, and 16 is the size of the paper"),
        (LeCun1989, {"image_size": 2}, "4 works"),
        (LeCun1989, {"image_size": 16, "stochastic_depth": 0.1}, "no stochastic depth"),
    ],
)
def test_what_they_refuse(build: type, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(num_classes=10, **arguments)


def test_sizes_advised_work() -> None:
    for image_size in (16, 28, 32):
        assert LeNet5(num_classes=3, image_size=image_size)(grey(1, image_size)).shape == (1, 3)
    for image_size in (4, 12, 16):
        assert LeCun1989(num_classes=3, image_size=image_size)(grey(1, image_size)).shape == (1, 3)


def test_other_images_than_built_for_are_refused() -> None:
    for model in (LeNet5(num_classes=3, image_size=32), LeCun1989(num_classes=3, image_size=32)):
        with pytest.raises(ValueError, match="takes images of 32x32, found 28x28"):
            model(grey(1, 28))


def test_a_file_without_codes_needs_the_number_of_classes(tmp_path: Path) -> None:
    trained = LeNet5(num_classes=10, image_size=32).eval()
    torch.save(trained.state_dict(), tmp_path / "lenet.pt")
    with pytest.raises(
        ValueError, match=r"since the head of lenet_5 has no weights: say num_classes=<number>"
    ):
        restore(tmp_path / "lenet.pt")
    restored = restore(tmp_path / "lenet.pt", num_classes=10)
    assert restored.report.fresh == []
    save_own(tmp_path / "own.safetensors", restored)  # which states it
    assert torch.equal(restore(tmp_path / "own.safetensors").model(grey(2, 32)), trained(grey(2, 32)))


def test_fixed_codes_are_no_new_head_and_a_linear_one_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = LeNet5(num_classes=10, image_size=32)
    torch.save(trained.state_dict(), tmp_path / "lenet.pt")
    for num_classes in (10, 7):
        fixed = LeNet5(num_classes=num_classes, image_size=32)
        report = load(fixed, tmp_path / "lenet.pt", head="new")
        assert (report.fresh, report.head) == ([], None)
        assert torch.equal(fixed.f6.weight, trained.f6.weight)
    linear = LeNet5(output="linear", num_classes=10, image_size=32, head_bias=-1.0)
    report = load(linear, tmp_path / "lenet.pt")
    assert report.fresh == ["head.weight", "head.bias"]
    assert not linear.head.weight.any()
    assert linear.head.bias.tolist() == [-1.0] * 10
