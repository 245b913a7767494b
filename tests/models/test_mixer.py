"""Mixer against the equations in NumPy, against timm, and its initialisation and stochastic depth."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from timm.models.mlp_mixer import MlpMixer
from torch import nn

from mixer_lightning.models.mixer import Mixer

SIZES = {"patch_size": 4, "num_blocks": 3, "hidden_dim": 24, "tokens_mlp_dim": 12, "channels_mlp_dim": 96}


def small_mixer(**changes: float) -> Mixer:
    """A Mixer on 16x16 images with random numbers everywhere, in the head and the norms too."""
    torch.manual_seed(0)
    model = Mixer(**{**SIZES, "num_classes": 7, "image_size": 16, **changes})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def flax_equations(
    weights: dict[str, np.ndarray], images: np.ndarray, *, patch: int, blocks: int
) -> np.ndarray:
    """vit_jax/models_mixer.py in NumPy, float64, with explicit patches instead of a convolution."""

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def mlp(x: np.ndarray, name: str) -> np.ndarray:
        h = x @ weights[f"{name}.fc1.weight"].T + weights[f"{name}.fc1.bias"]
        h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        return h @ weights[f"{name}.fc2.weight"].T + weights[f"{name}.fc2.bias"]

    tokens = []
    for top in range(0, images.shape[2], patch):
        for left in range(0, images.shape[3], patch):
            pixels = images[:, None, :, top : top + patch, left : left + patch]
            product = (pixels * weights["stem.proj.weight"]).sum((2, 3, 4))
            tokens.append(product + weights["stem.proj.bias"])
    x = np.stack(tokens, axis=1)
    for i in range(blocks):
        y = mlp(norm(x, f"blocks.{i}.norm1").swapaxes(1, 2), f"blocks.{i}.mlp_tokens")
        x = x + y.swapaxes(1, 2)
        x = x + mlp(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp_channels")
    return norm(x, "norm").mean(1) @ weights["head.weight"].T + weights["head.bias"]


def test_logits_are_those_of_the_flax_equations() -> None:
    model = small_mixer().double()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    expected = flax_equations(weights, images.numpy(), patch=4, blocks=3)
    with torch.no_grad():
        logits = model(images).numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-9, atol=1e-10)


def test_logits_are_those_of_timm_with_the_tanh_gelu() -> None:
    model = small_mixer()
    theirs = MlpMixer(
        num_classes=7,
        img_size=16,
        patch_size=4,
        num_blocks=3,
        embed_dim=24,
        mlp_ratio=(0.5, 4.0),
        act_layer=partial(nn.GELU, approximate="tanh"),
    ).eval()
    theirs.load_state_dict(model.state_dict())  # strict: the names are timm's
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(model(images), theirs(images), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.forward_features(images), theirs.forward_features(images))


def test_initial_numbers_are_those_of_flax() -> None:
    torch.manual_seed(0)
    model = Mixer(
        patch_size=8,
        num_blocks=2,
        hidden_dim=256,
        tokens_mlp_dim=128,
        channels_mlp_dim=1024,
        num_classes=10,
        image_size=128,
        head_bias=-6.9,
    )
    for name, weight in model.named_parameters():
        if name == "head.weight":
            assert not weight.any()
        elif name == "head.bias":
            assert torch.equal(weight, torch.full((10,), -6.9))
        elif name.endswith("bias"):
            assert not weight.any(), name
        elif weight.ndim == 1:
            assert torch.equal(weight, torch.ones_like(weight)), name
        else:
            fan_in = weight[0].numel()
            assert weight.std().item() == pytest.approx(fan_in**-0.5, rel=0.02), name
            assert abs(weight.mean().item()) < 5 * (fan_in * weight.numel()) ** -0.5, name
            limit = 2 * fan_in**-0.5 / 0.87962566  # two deviations of the normal before it was cut
            assert 0.99 * limit < weight.abs().max().item() <= limit * (1 + 1e-6), name


def test_drop_rates_grow_linearly_from_zero() -> None:
    model = small_mixer(num_blocks=5, stochastic_depth=0.2)
    assert [block.drop_rate for block in model.blocks] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert small_mixer(num_blocks=1, stochastic_depth=0.2).blocks[0].drop_rate == 0


def test_dropped_branches_are_zero_and_kept_ones_unscaled() -> None:
    block = small_mixer(num_blocks=2, stochastic_depth=0.3).blocks[1].train()
    block.mlp_channels = nn.Identity()  # then a branch adds norm2(x), or nothing
    block.mlp_tokens = nn.Identity()
    torch.manual_seed(0)
    x = torch.randn(1, 16, 24).expand(4000, 16, 24)
    with torch.no_grad():
        y = block(x)
        tokens_kept = x[0] + block.norm1(x[0])
        outcomes = {
            "none": x[0],
            "tokens": tokens_kept,
            "channels": x[0] + block.norm2(x[0]),
            "both": tokens_kept + block.norm2(tokens_kept),
        }
    shares = {
        name: ((y - outcome).abs().amax((1, 2)) < 1e-4).float().mean().item()
        for name, outcome in outcomes.items()
    }
    # Independent masks: the product of .3 and .7; a standard error is below .008.
    assert shares == pytest.approx({"none": 0.09, "tokens": 0.21, "channels": 0.21, "both": 0.49}, abs=0.03)
    assert sum(shares.values()) == pytest.approx(1)


def test_stochastic_depth_is_off_in_evaluation() -> None:
    plain, deep = small_mixer(), small_mixer(stochastic_depth=0.9)
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(plain(images), deep(images))
        assert not torch.equal(plain(images), deep.train()(images))


def test_the_first_block_is_never_dropped() -> None:
    block = small_mixer(stochastic_depth=0.99).blocks[0]
    x = torch.randn(64, 16, 24)
    with torch.no_grad():
        assert torch.equal(block.eval()(x), block.train()(x))


@pytest.mark.parametrize(
    ("image_size", "nearest"), [(17, "16 and 20 work"), (30, "28 and 32 work"), (3, "4 works")]
)
def test_image_size_must_be_a_multiple_of_the_patch(image_size: int, nearest: str) -> None:
    with pytest.raises(
        ValueError, match=f"image_size {image_size} is not a multiple of patch_size 4: {nearest}"
    ):
        small_mixer(image_size=image_size)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="takes images of 16x16, found 16x20"):
        small_mixer()(torch.zeros(1, 3, 16, 20))


def test_a_branch_is_seen_alone_and_may_be_another_module() -> None:
    model, images, seen = small_mixer(), torch.randn(2, 3, 16, 16), []
    block = model.blocks[1]
    handle = block.mlp_channels.register_forward_hook(
        lambda module, given, found: seen.append((given[0], found))
    )
    with torch.no_grad():
        watched = model(images)
        handle.remove()
        torch.testing.assert_close(watched, model(images))
        given, found = seen[0]
        torch.testing.assert_close(found, block.mlp_channels(given))
        block.mlp_channels = nn.Identity()
        assert model(images).isfinite().all()
