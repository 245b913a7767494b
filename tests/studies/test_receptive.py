"""Receptive fields: single and stacked convolutions against closed forms, and what the study writes."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mixer_lightning.models.presets import build_model
from mixer_lightning.reports import receptive as report
from mixer_lightning.studies import receptive
from mixer_lightning.studies.receptive_field import (
    Layer,
    batch_statistics,
    field_of,
    gradient_map,
    layers_of,
    on_grid,
    sees_everything,
)


class Net(nn.Module):
    """Layers whose output is the feature map."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward_features(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers(images)
        return features


def uniform(kernel: int, *, depth: int, stride: int = 1) -> Net:
    convs = [
        nn.Conv2d(3 if i == 0 else 1, 1, kernel, stride=stride, padding=(kernel - 1) // 2, bias=False)
        for i in range(depth)
    ]
    for conv in convs:
        nn.init.ones_(conv.weight)
    return Net(*convs)


def measured(model: nn.Module, *, size: int, images: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return gradient_map(model, torch.randn(images, 3, size, size, generator=generator), generator=generator)


@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_the_field_of_one_convolution_is_its_kernel(kernel: int) -> None:
    field = measured(uniform(kernel, depth=1), size=15)
    first, end = field_of([Layer(kernel, 1, (kernel - 1) // 2)], 7)
    assert (first, end) == (7 - kernel // 2, 8 + kernel // 2)
    expected = torch.zeros(15, 15)
    expected[first:end, first:end] = 1
    assert torch.equal(field > 0, expected > 0)
    assert field[first:end, first:end].unique().numel() == 1
    array = field.numpy()
    assert report.luo_side(array) == kernel
    assert report.side_of_mass(array, 1.0, centre=7.5) == kernel


@pytest.mark.parametrize(("kernel", "depth"), [(3, 4), (5, 3)])
def test_uniform_stacks_have_the_papers_closed_form(kernel: int, depth: int) -> None:
    """Section 2.1 of arXiv 1701.04128: the gradient is the kernel, convolved with itself layer by layer."""
    side = depth * (kernel - 1) + 1
    power = np.ones(1)
    for _ in range(depth):
        power = np.convolve(power, np.ones(kernel))
    assert len(power) == side
    field = measured(uniform(kernel, depth=depth), size=side).numpy()
    np.testing.assert_allclose(field / field.max(), np.outer(power, power) / power.max() ** 2, rtol=1e-6)
    # variances of the layers add up, and so the field grows with the root of the depth only
    away = np.arange(side) - side // 2
    variance = float((field.sum(0) * away**2).sum() / field.sum())
    assert variance == pytest.approx(depth * (kernel**2 - 1) / 12)


def test_a_deep_uniform_stack_is_nearly_gaussian() -> None:
    depth, kernel = 30, 3
    field = measured(uniform(kernel, depth=depth), size=61, images=1).numpy()
    row = field[30] / field[30].sum()
    variance = depth * (kernel**2 - 1) / 12
    gauss = np.exp(-((np.arange(61) - 30) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)
    assert np.abs(row - gauss).max() < 0.01 * gauss.max()
    # a Gaussian has 95.45 % within two deviations along an axis
    assert report.side_of_mass(field, 0.9545**2, centre=30.5) == pytest.approx(4 * math.sqrt(variance), abs=2)


def test_theoretical_sizes_of_known_networks() -> None:
    def side(name: str) -> int:
        with torch.device("meta"):
            layers = layers_of(build_model(name))
        assert layers is not None
        first, end = field_of(layers, 8)
        return end - first

    assert side("convmixer_256_8") == 2 * (8 * 4 + 1)  # patches of 2 around 8 kernels of 5
    assert side("convmixer_1536_20") == 7 * (20 * 8 + 1)
    # timm's ResNet strides in the 3x3 convolutions: 1 + 6 + 2*2 + 3*8 + (8 + 3*16) + (16 + 5*32) + (32 + 2*64)
    assert side("resnet50") == 427
    # 1 + 2 + 8*2 + (2 + 7*4) + (4 + 7*8)
    assert side("wrn_28_2") == 109


@pytest.mark.parametrize("kernel_size", [2, 3, 4])
def test_the_field_of_a_convmixer_fills_its_closed_form_and_no_more(kernel_size: int) -> None:
    torch.manual_seed(0)
    overrides = {"dim": 8, "depth": 2, "kernel_size": kernel_size, "patch_size": 2}
    model = build_model("convmixer_256_8", image_size=24, overrides=overrides).eval()
    images = torch.randn(4, 3, 24, 24)
    batch_statistics(model, images)
    field = gradient_map(model, images, generator=torch.Generator().manual_seed(0))
    layers = layers_of(model)
    assert layers is not None
    first, end = field_of(layers, 6)
    assert end - first == 2 * (2 * (kernel_size - 1) + 1)
    reached = torch.zeros(24, 24, dtype=torch.bool)
    reached[first:end, first:end] = True
    assert torch.equal(field > 0, reached)


def test_one_block_of_a_mixer_sees_the_whole_image() -> None:
    torch.manual_seed(0)
    model = build_model("mixer_digits", image_size=16, overrides={"patch_size": 4, "num_blocks": 1}).eval()
    assert sees_everything(model)
    assert layers_of(model) is None
    assert (measured(model, size=16) > 0).all()
    # with a plain sum over channels there would be nothing to see: the last LayerNorm makes it constant
    x = torch.randn(1, 3, 16, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(model.forward_features(x)[:, 10].sum(), x)
    assert gradient.abs().max() < 1e-4 * measured(model, size=16).max()


def test_every_layout_of_features_comes_to_a_grid() -> None:
    maps = torch.randn(2, 5, 3, 3)
    model = nn.Module()
    assert torch.equal(on_grid(model, maps), maps)
    assert torch.equal(on_grid(model, maps.permute(0, 2, 3, 1)), maps)
    tokens = maps.flatten(2).mT
    assert torch.equal(on_grid(model, tokens), maps)
    model.num_prefix_tokens = 1
    assert torch.equal(on_grid(model, torch.cat([torch.zeros(2, 1, 5), tokens], dim=1)), maps)
    with pytest.raises(ValueError, match=r"\[2, 8, 5\] lie on no square grid"):
        on_grid(nn.Module(), tokens[:, 1:])


def test_batch_statistics_are_those_of_the_images() -> None:
    model = Net(nn.BatchNorm2d(3, affine=False)).eval()
    images = 5 + 2 * torch.randn(16, 3, 8, 8)
    batch_statistics(model, images)
    assert not model.layers[0].training
    torch.testing.assert_close(model.layers[0].running_mean, images.mean(dim=(0, 2, 3)))
    assert model.forward_features(images).var() == pytest.approx(1, abs=0.01)
    assert model.layers[0].momentum == 0.1


def test_squares_that_the_image_cuts_count_what_is_inside() -> None:
    flat = np.ones((8, 8))
    pixels, share = report.mass_by_square(flat, centre=5.0)
    assert pixels.tolist() == [4, 16, 36, 49, 64]
    np.testing.assert_allclose(share, pixels / 64)
    assert report.side_of_mass(flat, 0.5, centre=5.0) == 6
    assert report.side_of_mass(flat, 1.0, centre=5.0) == 8
    assert report.centre_of(2, grid=4, size=8) == 5.0


def test_the_study_writes_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(3):
        noise = np.random.default_rng(i).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(noise).save(tmp_path / "photos" / f"{i}.png")
    argv = ["models=mixer_digits,convmixer_96_4", f"images={tmp_path / 'photos'}", "num_images=2"]
    argv += [f"out={tmp_path}", "name=fields"]
    receptive.main(argv)
    path = tmp_path / "fields.csv"
    with path.open() as file:
        mixer, convmixer = csv.DictReader(file)
    assert mixer["theoretical_side"] == "image"
    assert (convmixer["theoretical_side"], convmixer["theoretical_first"]) == ("17", "-4")
    assert float(convmixer["mass_inside"]) == 1
    assert "2 of photos" in (tmp_path / "fields.md").read_text()
    assert (tmp_path / "fields.png").read_bytes().startswith(b"\x89PNG")
    with np.load(tmp_path / "fields.npz") as maps:
        assert {maps[key].shape for key in maps.files} == {(8, 8)}

    monkeypatch.setattr(report, "draw", lambda *_: None)
    before, measure, made = path.read_bytes(), receptive._measure, []
    monkeypatch.setattr(receptive, "_measure", lambda *a: made.append(a[0].model) or measure(*a))
    receptive.main(argv)
    assert path.read_bytes() == before
    assert not made
    other = tmp_path / "other" / "photos"  # a folder of the same name, with files of the same names
    other.mkdir(parents=True)
    for path_of_one in (tmp_path / "photos").iterdir():
        Image.new("RGB", (12, 12), (9, 99, 199)).save(other / path_of_one.name)
    receptive.main([*argv[:1], f"images={other}", *argv[2:], f"out={tmp_path / 'other'}"])
    receptive.main([*argv[:1], f"images={tmp_path / 'photos'}", *argv[2:], f"out={tmp_path / 'other'}"])
    assert made == ["mixer_digits", "convmixer_96_4"] * 2
    with (tmp_path / "other" / "fields.csv").open() as file:
        assert [row["model"] for row in csv.DictReader(file)] == ["mixer_digits", "convmixer_96_4"]
    made.clear()
    (tmp_path / "fields.npz").unlink()  # without its map a row is made again, the same
    receptive.main(argv)
    assert made == ["mixer_digits", "convmixer_96_4"]
    assert path.read_bytes() == before
    assert "17" in capsys.readouterr().out
    broken = tmp_path / "photos" / "0.png"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(SystemExit):
        receptive.main(argv)
    assert f"images: {broken} cannot be read: " in capsys.readouterr().err


def test_a_checkpoint_stands_beside_its_initialisation(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(3)
    model = build_model("convmixer_96_4", num_classes=10)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    receptive.main([f"checkpoints={tmp_path / 'w.safetensors'}", "num_images=2", f"out={tmp_path}"])
    with (tmp_path / "receptive.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["weights"]) for row in rows] == [("w", "initialisation"), ("w", "trained")]
    assert rows[0]["key"] != rows[1]["key"]
    assert rows[0]["side_50"] != rows[1]["side_50"] or rows[0]["luo_side"] != rows[1]["luo_side"]
    assert rows[0]["images"] == "normal noise"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["models=mixer_s17"], "there is no model 'mixer_s17'"),
        (["num_images=0"], "num_images must be at least 1"),
        (["name=a/b"], "name=a/b names a folder"),
        (["checkpoints=nowhere.npz"], "there is no checkpoint file nowhere.npz"),
        (["images=nowhere"], "images: there is no nowhere"),
    ],
)
def test_a_wrong_setting_is_named(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        receptive.main([*argv, f"out={tmp_path}"])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
