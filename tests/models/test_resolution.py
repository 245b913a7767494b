"""A Mixer on larger images: its parts see what the small model saw, from every kind of file, and all of it trains."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn

from mixer_lightning.api import create_model
from mixer_lightning.checkpoints.describe import describe
from mixer_lightning.checkpoints.load import load
from mixer_lightning.checkpoints.restore import restore
from mixer_lightning.checkpoints.save import save_flax, save_own, save_timm
from mixer_lightning.models.mixer import Mixer
from mixer_lightning.models.resolution import part_major, widen

SIZES = {"patch_size": 4, "num_blocks": 2, "hidden_dim": 12, "tokens_mlp_dim": 6, "channels_mlp_dim": 48}
SMALL = 12  # pixels, a grid of 3 x 3
# fmt: off
AT_448 = {  # parameters without a head, and GMACs
    "mixer_s32": (21_609_504, 5.24),
    "mixer_s16": (30_068_352, 20.04),
    "mixer_b32": (66_313_776, 17.11),
    "mixer_b16": (86_227_392, 67.05),
    "mixer_l32": (224_018_016, 59.81),
    "mixer_l16": (279_475_584, 237.38),
    "mixer_h14": (588_442_368, 645.02),
}
# fmt: on


def timms_mixer(*, seed: int = 0, num_classes: int = 5) -> MlpMixer:
    """timm's Mixer of SIZES with the tanh GELU and random numbers everywhere: the judge of what parts should give."""
    torch.manual_seed(seed)
    model = MlpMixer(
        num_classes=num_classes,
        img_size=SMALL,
        patch_size=4,
        num_blocks=2,
        embed_dim=12,
        mlp_ratio=(0.5, 4.0),
        act_layer=partial(nn.GELU, approximate="tanh"),
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def our_mixer(*, parts: int, num_classes: int = 5) -> Mixer:
    return Mixer(**SIZES, num_classes=num_classes, image_size=parts * SMALL).eval()


def crops(images: Tensor, *, parts: int) -> list[Tensor]:
    """The parts of images [B, 3, parts * SMALL, parts * SMALL], row by row."""
    rows = images.split(SMALL, dim=2)
    assert len(rows) == parts
    return [crop for row in rows for crop in row.split(SMALL, dim=3)]


@torch.no_grad()
def assert_parts_are_seen_alone(large: nn.Module, small: nn.Module, *, parts: int) -> None:
    images = torch.randn(2, 3, parts * SMALL, parts * SMALL, generator=torch.Generator().manual_seed(1))
    features = large.forward_features(images)  # [B, S', C]
    grid = features.unflatten(1, (3 * parts, 3 * parts))
    windows = [w for row in grid.split(3, dim=1) for w in row.split(3, dim=2)]
    for window, crop in zip(windows, crops(images, parts=parts), strict=True):
        torch.testing.assert_close(window.flatten(1, 2), small.forward_features(crop), rtol=1e-5, atol=1e-5)
    logits = torch.stack([small(crop) for crop in crops(images, parts=parts)]).mean(0)
    assert logits.std() > 0.01
    torch.testing.assert_close(large(images), logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("kind", ["flax", "timm", "run", "own"])
def test_each_part_is_seen_as_by_timms_small_mixer(tmp_path: Path, kind: str, parts: int) -> None:
    small = timms_mixer()
    ours = our_mixer(parts=1)
    ours.load_state_dict(small.state_dict())
    path = tmp_path / {"flax": "m.npz", "timm": "m.pth", "run": "best.ckpt", "own": "m.safetensors"}[kind]
    if kind == "flax":
        save_flax(ours, path)
    elif kind == "timm":
        torch.save(small.state_dict(), path)
    elif kind == "run":
        state = {f"model.{key}": tensor for key, tensor in small.state_dict().items()}
        torch.save({"state_dict": state, "recipe": {"model": {}, "image_size": SMALL}}, path)
    else:
        save_timm(ours, tmp_path / "plain.pth")
        save_own(path, restore(tmp_path / "plain.pth"))
    large = our_mixer(parts=parts)
    report = load(large, path)
    assert_parts_are_seen_alone(large, small, parts=parts)
    assert f"block-diagonal, in {parts}x{parts} parts of {SMALL} px" in str(report)
    assert (report.parts, report.trained_at, report.fresh) == (parts, SMALL, [])
    assert large.blocks[0].mlp_tokens.fc1.weight.shape == (6 * parts**2, 9 * parts**2)


def test_without_the_permutation_it_would_be_wrong(tmp_path: Path) -> None:
    small, large = timms_mixer(), our_mixer(parts=2)
    torch.save(small.state_dict(), tmp_path / "small.pth")
    load(large, tmp_path / "small.pth")
    with torch.no_grad():
        for block in large.blocks:
            block.mlp_tokens.fc1.weight.copy_(block.mlp_tokens.fc1.weight[:, part_major(grid=3, parts=2)])
    with pytest.raises(AssertionError):
        assert_parts_are_seen_alone(large, small, parts=2)


def test_part_major_order_by_hand() -> None:
    #  0  1 |  2  3      a grid of 4 x 4 tokens as 2 x 2 parts
    #  4  5 |  6  7
    #  8  9 | 10 11
    # 12 13 | 14 15
    expected = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    assert part_major(grid=2, parts=2).tolist() == expected


def test_the_new_head_is_zero_and_the_rest_stays(tmp_path: Path) -> None:
    small = timms_mixer(num_classes=21)
    torch.save(small.state_dict(), tmp_path / "small.pth")
    large = our_mixer(parts=2)
    report = load(large, tmp_path / "small.pth")
    assert report.fresh == ["head.weight", "head.bias"]
    assert not large.head.weight.any()
    small.reset_classifier(5)
    nn.init.normal_(large.head.weight)
    small.head.load_state_dict(large.head.state_dict())
    assert_parts_are_seen_alone(large, small, parts=2)


def test_zeros_between_parts_are_trained_too(tmp_path: Path) -> None:
    torch.save(timms_mixer().state_dict(), tmp_path / "small.pth")
    large = our_mixer(parts=2).train()
    load(large, tmp_path / "small.pth")
    weights = {name: p for name, p in large.named_parameters() if "mlp_tokens" in name and "weight" in name}
    zeros = {name: p == 0 for name, p in weights.items()}
    assert all(z.float().mean() == 0.75 for z in zeros.values())  # 3 of 4 blocks in a row
    images = torch.randn(4, 3, 24, 24)
    nn.functional.cross_entropy(large(images), torch.arange(4)).backward()
    torch.optim.SGD(large.parameters(), lr=0.1).step()
    for name, parameter in weights.items():
        assert parameter[zeros[name]].count_nonzero() > 0.99 * zeros[name].sum()


def test_a_checkpoint_of_the_larger_model_goes_back_in_and_on(tmp_path: Path) -> None:
    """What fine-tuning at a higher resolution saved: into a model as its recipe builds it, and to a higher one yet."""
    torch.save(timms_mixer().state_dict(), tmp_path / "small.pth")
    large = our_mixer(parts=2)
    load(large, tmp_path / "small.pth")
    with torch.no_grad():
        for parameter in large.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    torch.save(large.state_dict(), tmp_path / "large.pth")
    again = our_mixer(parts=2)
    report = load(again, tmp_path / "large.pth")
    assert report.parts == 1
    assert all(torch.equal(again.state_dict()[key], value) for key, value in large.state_dict().items())
    load(again, tmp_path / "large.pth")  # into one that is wide already

    largest = our_mixer(parts=6)  # three times as large again
    load(largest, tmp_path / "large.pth")
    images = torch.randn(1, 3, 72, 72)
    with torch.no_grad():
        logits = torch.stack([large(c) for r in images.split(24, 2) for c in r.split(24, 3)]).mean(0)
        torch.testing.assert_close(largest(images), logits, rtol=1e-5, atol=1e-5)


def test_a_widened_model_has_its_name(tmp_path: Path) -> None:
    small = create_model("mixer_digits", num_classes=10)
    save_flax(small, tmp_path / "mixer.npz")
    large = create_model("mixer_digits", num_classes=10, image_size=16, checkpoint=tmp_path / "mixer.npz")
    assert str(describe(large.state_dict())) == "mixer_digits at 16 (token mixing of 2x2 parts), 10 classes"
    save_timm(large, tmp_path / "large.safetensors")
    restored = restore(tmp_path / "large.safetensors")
    assert (restored.name, restored.image_size) == ("mixer_digits", 16)
    plain = create_model(
        "mixer_digits", num_classes=10, image_size=16
    )  # from scratch, as narrow as in the paper
    assert str(describe(plain.state_dict())) == "mixer_digits at 16, 10 classes"


def test_a_mixer_trained_narrow_at_that_size_stays_narrow(tmp_path: Path) -> None:
    large = create_model("mixer_digits", num_classes=10, image_size=16)
    save_timm(large, tmp_path / "large.pth")
    other = create_model("mixer_digits", num_classes=10, image_size=16, checkpoint=tmp_path / "large.pth")
    assert other.blocks[0].mlp_tokens.fc1.weight.shape == (32, 256)


def test_a_misfit_leaves_the_model_as_narrow_as_it_was(tmp_path: Path) -> None:
    small = create_model("mixer_digits", num_classes=10)
    state = small.state_dict()
    del state["norm.bias"]
    torch.save(state, tmp_path / "cut.pth")
    large = create_model("mixer_digits", num_classes=10, image_size=16)
    before = {key: tensor.clone() for key, tensor in large.state_dict().items()}
    with pytest.raises(ValueError, match=r"norm\.bias is missing"):
        load(large, tmp_path / "cut.pth")
    assert all(torch.equal(large.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize("name", AT_448)
def test_size_at_448(name: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad():
        model = create_model(name, image_size=448)
        widen(model, parts=2)
        with FlopCounterMode(display=False) as counter:
            model.forward_features(torch.empty(1, 3, 448, 448))
    head = sum(p.numel() for p in model.head.parameters())
    assert sum(p.numel() for p in model.parameters()) - head == AT_448[name][0]
    assert counter.get_total_flops() / 2e9 == pytest.approx(AT_448[name][1], abs=0.006)


def test_a_convmixer_goes_to_any_multiple_of_its_patches(tmp_path: Path) -> None:
    small = create_model("convmixer_96_4", num_classes=10)
    save_timm(small, tmp_path / "c.pth")
    patch = small.stem[0].kernel_size[0]
    size = 5 * patch
    large = create_model("convmixer_96_4", num_classes=10, image_size=size, checkpoint=tmp_path / "c.pth")
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(large.eval()(images), small.eval()(images))
