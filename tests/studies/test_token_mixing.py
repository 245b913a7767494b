"""The study of weights that mix tokens: what is measured, in which order it is shown, and that the file's is drawn."""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import timm
import torch
from PIL import Image

from mixer_lightning.api import create_model
from mixer_lightning.engine import weight_images
from mixer_lightning.reports import weights as pictures
from mixer_lightning.reports.token_mixing import DEPTHWISE, TOKEN_MIXING
from mixer_lightning.reports.unit_images import (
    NO_UNIT,
    neighbour_cosines,
    opposites_in_order,
    spectral_centroids,
)
from mixer_lightning.studies import token_mixing

GRID, PATCH, DIM, UNITS = 6, 4, 5, 8


def wave(down: int, right: int, *, grid: int = 12, phase: float = 0.3) -> np.ndarray:
    """A cosine of so many periods down and to the right over the grid."""
    y, x = np.mgrid[:grid, :grid] / grid
    return np.cos(2 * np.pi * (down * y + right * x) + phase).astype(np.float32)


def official(path: Path, *, seed: int = 0, blocks: int = 2, smooth: bool = False) -> dict[str, np.ndarray]:
    """An .npz in the official layout with numbers of our own; what was written."""
    random = np.random.default_rng(seed)
    shapes = {"stem/kernel": (PATCH, PATCH, 3, DIM), "stem/bias": (DIM,)}
    mlps = {"token_mixing": (GRID**2, UNITS), "channel_mixing": (DIM, 7)}
    for i in range(blocks):
        for mlp, (outer, inner) in mlps.items():
            at = f"MixerBlock_{i}/{mlp}"
            shapes |= {f"{at}/Dense_0/kernel": (outer, inner), f"{at}/Dense_0/bias": (inner,)}
            shapes |= {f"{at}/Dense_1/kernel": (inner, outer), f"{at}/Dense_1/bias": (outer,)}
        for norm in ("LayerNorm_0", "LayerNorm_1"):
            shapes |= {f"MixerBlock_{i}/{norm}/{leaf}": (DIM,) for leaf in ("scale", "bias")}
    shapes |= {f"pre_head_layer_norm/{leaf}": (DIM,) for leaf in ("scale", "bias")}
    shapes |= {"head/kernel": (DIM, 10), "head/bias": (10,)}
    arrays = {key: random.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    if smooth:
        for j in range(UNITS):
            image = wave(0, 1, grid=GRID, phase=0.7 * j) + 2 * (-1) ** j
            arrays["MixerBlock_0/token_mixing/Dense_0/kernel"][:, j] = image.ravel()
    np.savez(path, **arrays)
    return arrays


# ----------------------------------------------------------------------------------------------- measures


def test_the_centroid_of_a_wave_is_its_frequency() -> None:
    waves = {(0, 1): 1 / 12, (2, 0): 2 / 12, (3, 4): 5 / 12, (6, 6): 0.5**0.5}
    images = np.stack([3 + 2 * wave(*periods) for periods in waves])  # a constant part counts for nothing
    assert spectral_centroids(images) == pytest.approx(list(waves.values()), abs=1e-6)
    assert spectral_centroids(np.full((1, 5, 5), 0.1, np.float32)) == [0]
    assert spectral_centroids(np.zeros((1, 5, 5), np.float32)) == [0]


def test_units_are_ordered_by_frequency_each_before_its_opposite() -> None:
    low, middle, high = wave(0, 1), wave(2, 2), wave(5, 4)
    images = np.stack([high, -low, middle, low + 0.1 * high, -3 * middle, -high])
    order, cosines = opposites_in_order(images)
    assert order.tolist() == [1, 3, 2, 4, 0, 5]
    assert cosines == pytest.approx([-1 / 1.01**0.5, -1, -1], abs=1e-6)


def test_a_unit_without_an_opposite_stands_alone() -> None:
    order, cosines = opposites_in_order(np.ones((3, 2, 2), np.float32))
    assert order.tolist() == [0, NO_UNIT, 1, NO_UNIT, 2, NO_UNIT]
    assert np.isnan(cosines).all()


def test_neighbours_alike() -> None:
    chess = np.indices((4, 4)).sum(axis=0) % 2 * 2.0 - 1
    stripes = np.tile([1.0, -1.0], (4, 2))  # alike downwards, opposite to the right: 12 pairs of each
    noise = np.random.default_rng(0).normal(size=(4, 4))
    images = np.stack([np.full((4, 4), -2.0), chess, stripes, noise]).astype(np.float32)
    first, second = [], []  # by loops, each pair in both directions
    for (y, x), value in np.ndenumerate(noise):
        for there in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
            if min(there) >= 0 and max(there) < 4:
                first.append(value)
                second.append(noise[there])
    expected = np.dot(first, second) / np.linalg.norm(first) / np.linalg.norm(second)
    assert neighbour_cosines(images) == pytest.approx([1, -1, 0, expected], abs=1e-6)
    independent = np.random.default_rng(1).normal(size=(400, 14, 14)).astype(np.float32)
    assert abs(neighbour_cosines(independent).mean()) < 0.01
    assert neighbour_cosines(np.ones((1, 1, 1), np.float32)) == [0]


# ------------------------------------------------------------------------------------- what a file's weights become


def enlarged(cell: np.ndarray, times: int) -> np.ndarray:
    return cell.repeat(times, axis=0).repeat(times, axis=1)


def is_shown(path: Path, cell: np.ndarray) -> bool:
    """Whether a picture shows an image [h, w, 3] whose every pixel is a square of equal pixels."""
    with Image.open(path) as image:
        picture = as_codes(np.asarray(image.convert("RGB")))
    for times in range(8, 32):
        piece = enlarged(as_codes(cell), times)
        height, width = (side - 1 for side in piece.shape)
        is_corner = picture[:-height, :-width] == piece[0, 0]
        is_corner &= picture[height:, width:] == piece[-1, -1]
        for y, x in np.argwhere(is_corner):
            if np.array_equal(picture[y : y + height + 1, x : x + width + 1], piece):
                return True
    return False


def as_codes(pixels: np.ndarray) -> np.ndarray:
    """[H, W, 3] -> one number for each colour, [H, W]."""
    return pixels.astype(np.int32) @ np.array([1, 256, 256**2], np.int32)


def test_columns_of_the_official_kernel_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = official(tmp_path / "small.npz", smooth=True)
    token_mixing.main([f"checkpoint={tmp_path / 'small.npz'}", f"out={tmp_path / 'out'}"])
    found = pictures.load(tmp_path / "out/token_mixing_small.npz")
    layers = found.layers[TOKEN_MIXING]
    assert [layer.name for layer in layers] == ["blocks.0.mlp_tokens.fc1", "blocks.1.mlp_tokens.fc1"]
    for i, layer in enumerate(layers):
        kernel = arrays[f"MixerBlock_{i}/token_mixing/Dense_0/kernel"]
        for j in range(UNITS):
            assert np.array_equal(layer.images[j], kernel[:, j].reshape(GRID, GRID))
    assert found.stem is not None
    assert all(np.array_equal(found.stem[c], arrays["stem/kernel"][..., c]) for c in range(DIM))

    norm = matplotlib.colors.Normalize(-(limit := pictures.colour_limit(layers)), limit, clip=True)
    for j in (2, 5):
        unit = arrays["MixerBlock_1/token_mixing/Dense_0/kernel"][:, j].reshape(GRID, GRID)
        piece = matplotlib.colormaps["RdBu_r"](norm(unit), bytes=True)[..., :3]
        assert is_shown(tmp_path / "out/token_mixing_units.png", piece), j
    kernel = arrays["stem/kernel"][..., 2]
    piece = np.round(255 * (kernel / np.abs(kernel).max() + 1) / 2).astype(np.uint8)
    assert is_shown(tmp_path / "out/token_mixing_stem.png", piece)

    rows = list(csv.DictReader((tmp_path / "out/token_mixing.csv").open(encoding="utf-8")))
    assert len(rows) == 2 * 2 * UNITS
    trained = [row for row in rows if (row["layer"], row["weights"]) == (layers[0].name, "trained")]
    partners = {row["unit"]: row["partner"] for row in trained}
    assert all(partners[partners[unit]] == unit for unit in partners)
    for row in trained:
        a, b = (
            arrays["MixerBlock_0/token_mixing/Dense_0/kernel"][:, int(row[key])]
            for key in ("unit", "partner")
        )
        assert float(row["cosine"]) == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-4)
        assert float(row["norm"]) == pytest.approx(np.linalg.norm(a), rel=1e-4)
    said = capsys.readouterr().out
    initial = [row for row in rows if (row["layer"], row["weights"]) == (layers[0].name, "initial")]
    alike = [np.mean([float(row["neighbour_cosine"]) for row in part]) for part in (trained, initial)]
    assert alike[0] > 0.8 > 0.3 > abs(alike[1])
    assert f"{alike[0]:.3f} (initial {alike[1]:.3f})" in (tmp_path / "out/token_mixing.md").read_text()
    assert f"{alike[0]:.2f}" in said


def test_a_widened_mixer_shows_each_part_in_its_place(tmp_path: Path) -> None:
    arrays = official(tmp_path / "small.npz")
    sizes = {
        "patch_size": PATCH,
        "num_blocks": 2,
        "hidden_dim": DIM,
        "tokens_mlp_dim": UNITS,
        "channels_mlp_dim": 7,
    }
    large = create_model(
        "mixer_s16",
        num_classes=10,
        image_size=2 * GRID * PATCH,
        overrides=sizes,
        checkpoint=tmp_path / "small.npz",
    )
    images = weight_images.layers_of(large)[TOKEN_MIXING]["blocks.1.mlp_tokens.fc1"]
    assert images.shape == (4 * UNITS, 2 * GRID, 2 * GRID)
    kernel = arrays["MixerBlock_1/token_mixing/Dense_0/kernel"]
    for part in range(4):
        top, left = GRID * (part // 2), GRID * (part % 2)
        for j in range(UNITS):
            expected = np.zeros((2 * GRID, 2 * GRID), np.float32)
            expected[top : top + GRID, left : left + GRID] = kernel[:, j].reshape(GRID, GRID)
            assert np.array_equal(images[part * UNITS + j], expected)


def test_a_kernel_in_colour() -> None:
    kernels = np.zeros((2, 2, 2, 3), np.float32)
    kernels[0, 0, 1, 0], kernels[0, 1, 0, 2] = 4.0, -2.0
    colours = pictures.as_colours(kernels)
    assert colours[0, 0, 1].tolist() == [1, 0.5, 0.5]  # red as it can be
    assert colours[0, 1, 0].tolist() == [0.5, 0.5, 0.25]
    assert (colours[1] == 0.5).all()  # no weights, no colour
    assert (
        pictures.as_colours(np.full((1, 3, 3, 1), -1, np.float32)).tolist() == np.zeros((1, 3, 3, 3)).tolist()
    )


def test_a_sheet_is_row_by_row() -> None:
    sheet = pictures.mosaic(np.arange(12, dtype=np.float32).reshape(3, 2, 2), per_row=2)
    nan = np.nan
    expected = [
        [0, 1, nan, 4, 5],
        [2, 3, nan, 6, 7],
        [nan] * 5,
        [8, 9, nan, nan, nan],
        [10, 11, nan, nan, nan],
    ]
    assert np.array_equal(sheet, np.array(expected, np.float32), equal_nan=True)


def test_a_convmixer_has_depthwise_kernels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = create_model("convmixer_96_4", num_classes=3)
    torch.save(model.state_dict(), tmp_path / "convmixer_96_4.pth")
    token_mixing.main([f"checkpoint={tmp_path / 'convmixer_96_4.pth'}", f"out={tmp_path}", "blocks=3,1"])
    found = pictures.load(tmp_path / "token_mixing_convmixer_96_4.npz")
    first, second = found.layers[DEPTHWISE]
    assert np.array_equal(first.images, model.blocks[1][0].fn[0].weight.detach()[:, 0].numpy())
    assert np.array_equal(second.images, model.blocks[3][0].fn[0].weight.detach()[:, 0].numpy())
    assert "no layer that mixes tokens" in capsys.readouterr().out
    assert not (tmp_path / "token_mixing_units.png").exists()
    assert (tmp_path / "token_mixing_depthwise.png").exists()


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_stems_of_other_models(name: str) -> None:
    model = timm.create_model(name)
    stem = weight_images.stem_of(model)
    weight = model.get_parameter(f"{timm.get_pretrained_cfg(name).first_conv}.weight").detach().numpy()
    assert stem is not None
    assert np.array_equal(stem, weight.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("name", ["resmlp_s12_8", "gmlp_s16", "gmixer_24"])
def test_other_models_that_mix_tokens(name: str) -> None:
    overrides = {"num_blocks": 4} if name.startswith("resmlp") else {}
    with torch.device("meta"):
        model = create_model(name, overrides=overrides)
    layers = [module for key, module in model.named_modules() if key.endswith(weight_images.TOKEN_LAYERS)]
    blocks = len(model.blocks)
    assert len(layers) == blocks


def test_several_checkpoints_are_told_apart(tmp_path: Path) -> None:
    for seed, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        official(tmp_path / folder / "Mixer.npz", seed=seed)
    files = ",".join(str(tmp_path / folder / "Mixer.npz") for folder in ("a", "b"))
    token_mixing.main([f"checkpoints=[{files}]", f"out={tmp_path}", "blocks=all", "name=both"])
    left, right = (pictures.load(tmp_path / f"both_Mixer{end}.npz") for end in ("-1", "-2"))
    assert not np.array_equal(left.layers[TOKEN_MIXING][0].images, right.layers[TOKEN_MIXING][0].images)
    rows = list(csv.DictReader((tmp_path / "both.csv").open(encoding="utf-8")))
    assert {row["checkpoint"] for row in rows} == {"Mixer-1", "Mixer-2"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "say checkpoint=<file>"),
        (["checkpoint=FILE", "checkpoints=FILE,FILE"], "say checkpoint=<file>"),
        (["checkpoints=[]"], "names no file"),
        (["checkpoint=FILE", "blocks=first,2"], "blocks must be all or numbers from 0"),
        (["checkpoint=FILE", "blocks=0,2"], "has 2, 0 to 1, and no 2"),
        (["checkpoint=FILE.npy"], "there is no checkpoint file"),
        (["checkpoint=FILE", "name=a/b"], "name is of files"),
        (["checkpoint=FILE", "model=mixer_s61"], "there is no model 'mixer_s61': did you mean 'mixer_s16'"),
        (["checkpoint=FILE", "out=FILE"], "cannot be a folder"),
    ],
)
def test_wrong_arguments(argv, message, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    official(tmp_path / "small.npz")
    argv = [argument.replace("FILE", str(tmp_path / "small.npz")) for argument in argv]
    with pytest.raises(SystemExit) as end:
        token_mixing.main(
            [*argv, *([] if any(a.startswith("out=") for a in argv) else [f"out={tmp_path / 'out'}"])]
        )
    assert end.value.code == 2
    assert message in capsys.readouterr().err
