"""HaloNet: attention as the paper defines it, a network as timm's own parts make it, sizes as published."""

from __future__ import annotations

import math

import pytest
import torch
from timm.layers.halo_attn import HaloAttn
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from torch import Tensor, nn

from mixer_lightning.api import create_model
from mixer_lightning.models.halonet import HaloAttention, HaloNet

TINY = {
    "block_size": 2,
    "halo_size": 1,
    "value_ratio": 1.0,
    "output_ratio": 1.5,
    "num_blocks": [1, 2, 1, 2],
    "num_heads": [4, 4, 4, 4],
    "final_dim": 24,
    "base_width": 16,
    "convolution_stages": 0,
}


def tiny(**settings: object) -> HaloNet:
    model = HaloNet(**{**TINY, "num_classes": 5, "image_size": 64, **settings})
    randomise(model)
    return model


def randomise(model: nn.Module) -> None:
    """Every tensor at random, so that nothing is zero or one and BatchNorm's statistics are not neutral."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                random = torch.rand_like(tensor) if "running_var" in name else 0.3 * torch.randn_like(tensor)
                tensor.add_(random)


def loop(attention: HaloAttention, images: Tensor) -> Tensor:
    """One query, one head, one key after the other: softmax(q . k / sqrt(d) + q . r) v over the window of q's block."""
    b, h, s, n = attention.block_size, attention.halo_size, attention.stride, attention.num_heads
    d, e = attention.key_dim, attention.value_dim
    to_query, to_both = (
        attention.q.weight[:, :, 0, 0],
        attention.kv.weight[:, :, 0, 0].unflatten(0, (n, d + e)),
    )
    by_height, by_width = attention.pos_embed.height_rel, attention.pos_embed.width_rel
    origin = h + b + 2 * h - 1  # where the table has distance 0
    size = images.shape[-1]
    out = images.new_zeros(len(images), n * e, size // s, size // s)
    for image, y, x, head in (
        (image, y, x, head)
        for image in range(len(images))
        for y in range(0, size, s)
        for x in range(0, size, s)
        for head in range(n)
    ):
        query = (to_query @ images[image, :, y, x])[head * d : (head + 1) * d]
        scores, values = [], []
        for row in range(y // b * b - h, y // b * b + b + h):
            for column in range(x // b * b - h, x // b * b + b + h):
                inside = 0 <= row < size and 0 <= column < size
                pixel = images[image, :, row, column] if inside else torch.zeros(images.shape[1])
                key, value = (to_both[head] @ pixel).split((d, e))
                position = by_height[row - y + origin] + by_width[column - x + origin]
                scores.append(query @ key / math.sqrt(d) + query @ position)
                values.append(value)
        weights = torch.stack(scores).softmax(0)
        out[image, head * e : (head + 1) * e, y // s, x // s] = weights @ torch.stack(values)
    return out


@pytest.mark.parametrize(
    ("block_size", "halo_size", "stride", "value_dim"),
    [(2, 1, 1, 12), (2, 1, 2, 8), (4, 0, 2, 4), (1, 1, 1, 8)],
)
@torch.no_grad()
def test_attention_is_the_papers(block_size: int, halo_size: int, stride: int, value_dim: int) -> None:
    torch.manual_seed(0)
    attention = HaloAttention(
        dim=8, value_dim=value_dim, num_heads=2, block_size=block_size, halo_size=halo_size, stride=stride
    )
    randomise(attention)
    images = torch.randn(2, 8, 4, 4)
    expected = loop(attention, images)
    assert expected.std() > 0.01
    torch.testing.assert_close(attention(images), expected)


@torch.no_grad()
def test_attention_is_timms() -> None:
    torch.manual_seed(0)
    theirs = HaloAttn(16, num_heads=4, block_size=3, halo_size=2)
    ours = HaloAttention(dim=16, value_dim=16, num_heads=4, block_size=3, halo_size=2, stride=1)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 16, 6, 9)
    torch.testing.assert_close(ours(images), theirs(images))


@pytest.mark.parametrize(("convolution_stages", "final_dim"), [(0, 24), (2, 0)])
@torch.no_grad()
def test_a_network_is_timms(convolution_stages: int, final_dim: int) -> None:
    kinds = ["bottle"] * convolution_stages + ["self_attn"] * (4 - convolution_stages)
    blocks = [
        ByoBlockCfg(type=kind, d=depth, c=24 * 2**i, s=1 if i == 0 else 2, gs=0, br=1 / 1.5)
        for i, (kind, depth) in enumerate(zip(kinds, TINY["num_blocks"], strict=True))
    ]
    config = ByoModelCfg(
        blocks=tuple(blocks),
        stem_chs=16,
        stem_type="7x7",
        stem_pool="maxpool",
        num_features=final_dim,
        act_layer="silu",
        self_attn_layer="halo",
        self_attn_kwargs={"block_size": 2, "halo_size": 1, "num_heads": 4},
    )
    theirs = ByobNet(config, num_classes=5).eval()
    ours = tiny(convolution_stages=convolution_stages, final_dim=final_dim).eval()
    for stage in ours.stages:
        for attention in stage.modules():
            if (
                isinstance(attention, HaloAttention) and attention.stride == 2
            ):  # there timm measures otherwise
                for table in attention.pos_embed.parameters():
                    table.zero_()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert ours(images).std() > 0.01
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("convolution_stages", [0, 2])
def test_every_parameter_gets_a_gradient(convolution_stages: int) -> None:
    model = tiny(value_ratio=1.5, convolution_stages=convolution_stages, stochastic_depth=0.2).train()
    nn.functional.cross_entropy(model(torch.randn(8, 3, 64, 64)), torch.arange(8) % 5).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_a_block_starts_as_its_shortcut_and_the_head_as_told() -> None:
    model = HaloNet(**TINY, num_classes=5, image_size=64, head_bias=-6.9).eval()
    block = model.stages[1][1]
    x = torch.randn(2, 48, 4, 4)
    torch.testing.assert_close(block(x), nn.functional.silu(x))
    assert torch.equal(model.head.fc.bias, torch.full((5,), -6.9))


def test_stochastic_depth_grows_from_block_to_block() -> None:
    model = tiny(stochastic_depth=0.5)
    rates = [block.drop_rate for stage in model.stages for block in stage]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    block = model.stages[3][1].train()
    block.drop_rate = 0.75
    for name in ("conv1_1x1", "self_attn", "post_attn", "conv3_1x1"):  # so that the branch is silu(silu(x))
        setattr(block, name, nn.Identity())
    x = torch.ones(2000, 1, 2, 2)
    branch, out = nn.functional.silu(nn.functional.silu(x)), block(x)
    dropped = (out == nn.functional.silu(x)).flatten(1).all(1)
    assert dropped.float().mean().item() == pytest.approx(0.75, abs=0.05)
    torch.testing.assert_close(out[~dropped], nn.functional.silu(x + 4 * branch)[~dropped])
    torch.testing.assert_close(block.eval()(x), nn.functional.silu(x + branch))


PUBLISHED_MILLIONS = [5.5, 8.1, 9.4, 11.8, 19.1, 30.7, 43.4, 67.4]  # arXiv 2103.12731


@pytest.mark.parametrize("number", range(8))
def test_sizes_are_the_papers(number: int) -> None:
    with torch.device("meta"):
        parameters = sum(p.numel() for p in create_model(f"halonet_h{number}").parameters())
    assert parameters / 1e6 == pytest.approx(PUBLISHED_MILLIONS[number], abs=0.1)


def test_convolutions_in_two_stages_cost_what_the_published_pair_differs_in() -> None:
    with torch.device("meta"):
        convolutional, attentive = (
            create_model("halonet_h4_base128_conv12", overrides={"convolution_stages": stages})
            for stages in (2, 0)
        )
    counts = [sum(p.numel() for p in model.parameters()) for model in (convolutional, attentive)]
    assert counts[0] - counts[1] == 1_465_632  # 87 M - 85 M, both rounded
    assert [type(block.self_attn) for block in attentive.stages[0]] == [HaloAttention] * 3
    assert [block.conv2_kxk.conv.kernel_size for block in convolutional.stages[1]] == [(3, 3)] * 3


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("halonet_h4", {"image_size": 512}, "image_size 512 .* block_size 12.*: 384 and 768 work"),
        ("halonet_h7", {"image_size": 600}, "image_size 600 .* block_size 10.*: 320 and 640 work"),
        ("halonet_h0", {"image_size": 224}, "image_size 224 .* block_size 8.*: 256 works"),
        (
            "halonet_h0",
            {"image_size": 224, "overrides": {"block_size": 7}},
            "block_size must be even, found 7",
        ),
        (
            "halonet_h0",
            {"overrides": {"num_heads": [3, 8, 8, 8]}},
            "3 heads do not divide 64 channels of keys, 64 of values",
        ),
        ("halonet_h0", {"overrides": {"output_ratio": 0.3}}, "output_ratio gives 19.2 channels"),
    ],
)
def test_what_is_refused(name: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        create_model(name, **settings)


def test_convolutions_alone_take_any_size() -> None:
    assert tiny(convolution_stages=4, image_size=50).eval()(torch.randn(1, 3, 50, 50)).shape == (1, 5)


def test_images_of_another_size_are_taken_where_blocks_fill_them() -> None:
    model = tiny().eval()
    assert model(torch.randn(1, 3, 128, 64)).shape == (1, 5)
    with pytest.raises(ValueError, match="blocks of 2 do not fill a feature map of"):
        model(torch.randn(1, 3, 96, 96))
