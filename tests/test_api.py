"""From Python: models of any size by name, and the way back to a run."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import mixer_lightning
from mixer_lightning import create_model, list_models, load
from mixer_lightning.checkpoints.restore import restore
from mixer_lightning.checkpoints.save import save_flax
from mixer_lightning.config.compose import compose_one
from mixer_lightning.engine.machine import Machine
from mixer_lightning.engine.prediction import predictions

CLASSES = ["ant", "bee", "cat"]


def trained(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.3 * torch.rand(tensor.shape, generator=generator))
    return model.eval()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Of a ConvMixer of its own sizes at 12 px, with an evaluation view of its own."""
    overrides = ["model=convmixer_96_4", "model.dim=24", "image_size=12"]
    view = ["augment.eval_crop=0.75", "augment.mean=[0.2,0.3,0.4]", "augment.eval_interpolation=bicubic"]
    recipe = compose_one("train", [*overrides, *view])
    model = trained(create_model("convmixer_96_4", overrides={"dim": 24}, image_size=12, num_classes=3))
    state = {f"model.{key}": tensor for key, tensor in model.state_dict().items()}
    content = {"state_dict": state, "recipe": recipe.to_dict(), "classes": CLASSES, "step": 1}
    (tmp_path / "run").mkdir()
    torch.save(content, tmp_path / "run" / "best.ckpt")
    return tmp_path / "run"


def picture(mode: str, size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def test_load_gives_model_classes_and_transform_and_they_are_those_of_predict(
    run_dir: Path, tmp_path: Path
) -> None:
    model, classes, transform = mixer_lightning.load(str(run_dir))
    assert classes == CLASSES
    assert not model.training
    assert (model.num_features, model.image_size, model.num_classes) == (24, 12, 3)
    files = []
    for mode, size in (
        ("RGB", (40, 30)),
        ("L", (13, 50)),
        ("P", (12, 12)),
        ("RGBA", (64, 64)),
        ("1", (9, 20)),
    ):
        files.append(tmp_path / f"{mode}.png")
        picture(mode, size).save(files[-1])
    machine = Machine(accelerator="cpu", precision="32-true")
    rows = list(predictions(restore(run_dir), files, machine, batch_size=8, top=3))
    for file, row in zip(files, rows, strict=True):
        image = transform(Image.open(file))
        assert (image.dtype, image.shape) == (torch.float32, (3, 12, 12))
        with torch.no_grad():
            probabilities = model(image[None]).softmax(-1)[0]
        found = {each["class"]: each["probability"] for each in row["classes"]}
        assert found == pytest.approx(dict(zip(CLASSES, probabilities.tolist(), strict=True)), rel=1e-4)


def test_the_transform_by_hand(run_dir: Path) -> None:
    """A grey image stays grey: (g / 255 - mean) / std in every pixel."""
    transform = load(run_dir).transform
    expected = [(0.4 - mean) / 0.5 for mean in (0.2, 0.3, 0.4)]
    image = transform(Image.new("RGB", (31, 17), (102, 102, 102)))
    for channel, value in enumerate(expected):
        torch.testing.assert_close(image[channel], torch.full((12, 12), value))


def test_the_transform_goes_to_workers_and_takes_images_only(run_dir: Path) -> None:
    transform = load(run_dir).transform
    image = picture("RGB", (20, 20))
    assert torch.equal(pickle.loads(pickle.dumps(transform))(image), transform(image))
    with pytest.raises(TypeError, match="a PIL image is expected"):
        transform(np.zeros((20, 20, 3), np.uint8))


def test_load_without_a_head_gives_features(run_dir: Path) -> None:
    whole, body = load(run_dir).model, load(run_dir, num_classes=0)
    images = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        expected = whole.forward_head(whole.forward_features(images), pre_logits=True)
        torch.testing.assert_close(body.model(images), expected)
    assert body.classes is None


@pytest.mark.parametrize("name", ["mixer_digits", "convmixer_96_4"])
def test_a_model_without_a_head(tmp_path: Path, name: str) -> None:
    whole = trained(create_model(name, num_classes=7))
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    body = create_model(name, num_classes=0, checkpoint=tmp_path / "weights.pth").eval()
    assert (body.num_classes, [key for key in body.state_dict() if key.startswith("head")]) == (0, [])
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = whole.forward_head(whole.forward_features(images), pre_logits=True)
        torch.testing.assert_close(body(images), expected)
    torch.save(body.state_dict(), tmp_path / "body.pth")
    again = load(tmp_path / "body.pth")
    with torch.no_grad():
        features = again.model(again.transform(picture("RGB", (8, 8)))[None])
    assert features.shape == (1, whole.num_features)


def test_own_sizes_and_their_way_back(tmp_path: Path) -> None:
    sizes = {"num_blocks": 2, "hidden_dim": 24, "tokens_mlp_dim": 6, "channels_mlp_dim": 40, "patch_size": 4}
    model = trained(create_model("mixer_s16", overrides=sizes, image_size=16, num_classes=5))
    assert (len(model.blocks), model.num_features) == (2, 24)
    save_flax(model, tmp_path / "own.npz")
    again = load(tmp_path / "own.npz")
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(again.model(images), model(images))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"num_block": 2}, "mixer_digits has no parameter 'num_block': did you mean 'num_blocks'"),
        ({"depth": 2}, "mixer_digits has no parameter 'depth'"),
        ({"num_blocks": "2"}, "num_blocks must be a whole number, at least 1, found '2'"),
        ({"num_blocks": 0}, "num_blocks must be at least 1, found 0"),
        ({"_target_": "os.system"}, "has no parameter '_target_'"),
    ],
)
def test_wrong_overrides_are_named(overrides: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        create_model("mixer_digits", overrides=overrides)


def test_models_by_pattern() -> None:
    assert list_models("mixer*") == [name for name in list_models() if name.startswith("mixer")]
    assert list_models("*mixer*") == [name for name in list_models() if "mixer" in name]
    assert {"mixer_b16", "convmixer_1536_20", "resnet50"} <= set(list_models())
    assert list_models("perceiver*") == []


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"num_classes": "10"}, "num_classes must be a whole number, at least 0, found '10'"),
        ({"num_classes": 2.5}, "num_classes must be a whole number, at least 0, found 2.5"),
        ({"image_size": 0}, "image_size must be at least 1, found 0"),
        ({"stochastic_depth": 1}, "stochastic_depth must be at least 0 and below 1, found 1"),
    ],
)
def test_wrong_numbers_are_named(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        create_model("mixer_digits", **wrong)
