"""A checkpoint alone gives the model back: our runs, our exports, and foreign files as far as they tell."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from mixer_lightning.api import create_model
from mixer_lightning.checkpoints.read import read
from mixer_lightning.checkpoints.restore import restore
from mixer_lightning.checkpoints.save import save_flax, save_own, save_timm
from mixer_lightning.models import presets
from mixer_lightning.models.convmixer import ConvMixer
from mixer_lightning.models.mixer import Mixer
from mixer_lightning.models.presets import model_node

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
CLASSES = ["one", "two", "three"]
AUGMENT = {
    "_target_": "mixer_lightning.data.transforms.Augment",
    "flip": 0.5,
    "mean": [0.1, 0.2, 0.3],
    "std": [1.0, 2.0, 3.0],
    "eval_crop": 0.9,
    "eval_resize": "square",
    "eval_interpolation": "bicubic",
    "eval_rounding": "big_vision",
}
SEEN = {key: value for key, value in AUGMENT.items() if key not in ("_target_", "flip")}


def trained(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """Random numbers in all tensors, the statistics of BatchNorm too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.2 * torch.rand(tensor.shape, generator=generator))
    return model.eval()


def relu_convmixer() -> ConvMixer:
    """Sizes and an activation that no file of conf/model has."""
    sizes = {"dim": 8, "depth": 2, "kernel_size": 4, "patch_size": 2}
    return ConvMixer(**sizes, activation="relu", num_classes=3, image_size=8)


def own_mixer() -> Mixer:
    sizes = {"patch_size": 4, "num_blocks": 1, "hidden_dim": 8, "tokens_mlp_dim": 4, "channels_mlp_dim": 16}
    return Mixer(**sizes, num_classes=3, image_size=8)


def write_run(path: Path, model: nn.Module, *, average: nn.Module | None = None) -> Path:
    """A checkpoint as a run writes it: best.ckpt has the averaged weights as its own, last.ckpt both."""
    content = {
        "state_dict": {f"model.{key}": tensor for key, tensor in model.state_dict().items()},
        "recipe": {
            "model": {"_target_": "shutil.rmtree", "activation": getattr(model, "activation", "gelu")},
            "image_size": 8,
            "augment": AUGMENT,
        },
        "classes": CLASSES,
        "optimizer": {"state": {}},
    }
    if average is not None:
        content["ema"] = average.state_dict()
    path.parent.mkdir(exist_ok=True)
    torch.save(content, path)
    return path


def assert_same_logits(model: nn.Module, other: nn.Module) -> None:
    with torch.no_grad():
        expected = model(IMAGES)
        assert expected.std() > 1e-3
        assert torch.equal(other(IMAGES), expected)


@pytest.mark.parametrize("make", [own_mixer, relu_convmixer])
def test_a_run_gives_its_model_back(tmp_path: Path, make: type) -> None:
    model = trained(make())
    restored = restore(write_run(tmp_path / "run" / "best.ckpt", model))
    assert not restored.model.training
    assert_same_logits(model, restored.model)
    assert (restored.name, restored.image_size, restored.classes) == (None, 8, CLASSES)
    assert restored.preprocessing == SEEN
    assert getattr(restored.model, "activation", None) == getattr(model, "activation", None)


def test_a_run_directory_stands_for_its_best_weights(tmp_path: Path) -> None:
    last, average, best = (trained(relu_convmixer(), seed=seed) for seed in range(3))
    run_dir = write_run(tmp_path / "run" / "last.ckpt", last, average=average).parent
    assert_same_logits(average, restore(run_dir).model)  # its BatchNorm statistics included
    write_run(run_dir / "best.ckpt", best)
    assert_same_logits(best, restore(run_dir).model)
    assert read(str(run_dir)).path == run_dir / "best.ckpt"
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty holds neither best.ckpt nor last.ckpt"):
        restore(tmp_path / "empty")


def test_foreign_files_give_what_their_tensors_tell(tmp_path: Path) -> None:
    mixer = trained(create_model("mixer_digits", num_classes=7))
    save_flax(mixer, tmp_path / "m.npz")
    restored = restore(tmp_path / "m.npz")
    assert_same_logits(mixer, restored.model)
    assert (restored.name, restored.image_size, restored.classes) == ("mixer_digits", 8, None)
    assert restored.preprocessing == {
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "eval_crop": 0.875,
        "eval_resize": "short_side",
        "eval_interpolation": "area",
        "eval_rounding": "big_vision",
    }

    convmixer = trained(create_model("convmixer_96_4", num_classes=7))
    save_timm(convmixer, tmp_path / "c.pth")
    restored = restore(tmp_path / "c.pth", image_size=16)
    assert_same_logits(convmixer, restored.model)
    assert (restored.name, restored.image_size) == ("convmixer_96_4", 16)
    assert restored.preprocessing["mean"] == [0.485, 0.456, 0.406]


def test_the_activation_comes_from_the_name(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = create_model("convmixer_768_32")
    save = {key: torch.zeros(()).expand(tensor.shape) for key, tensor in model.state_dict().items()}
    torch.save(save, tmp_path / "c.pth")  # one zero stands for every number, so that the file stays small
    restored = restore(tmp_path / "c.pth")
    assert (restored.name, restored.image_size) == ("convmixer_768_32", 224)
    assert restored.model.activation == "relu"


def test_what_a_file_does_not_tell_is_asked_for(tmp_path: Path) -> None:
    save_timm(relu_convmixer(), tmp_path / "c.pth")
    with pytest.raises(ValueError, match="does not tell the size of its images: say image_size=<pixels>"):
        restore(tmp_path / "c.pth")
    with pytest.raises(ValueError, match=r"does not tell the activation of its .*: say model=<name>"):
        restore(tmp_path / "c.pth", image_size=8)
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(
        ValueError, match=r"does not tell what model it holds: say model=<name>, one that `mixer models`"
    ):
        restore(tmp_path / "other.pth")
    with pytest.raises(ValueError, match="holds none of the models that"):
        restore(tmp_path / "other.pth", model="mixer_digits")
    headless = {k: v for k, v in own_mixer().state_dict().items() if "head" not in k}
    torch.save(headless, tmp_path / "headless.pth")
    with pytest.raises(ValueError, match="has no head: say num_classes=<number> for a new one"):
        restore(tmp_path / "headless.pth")
    assert restore(tmp_path / "headless.pth", num_classes=4).model.head.weight.shape == (4, 8)


def test_a_name_is_checked_against_the_file(tmp_path: Path) -> None:
    save_timm(create_model("mixer_digits", num_classes=7), tmp_path / "m.pth")
    assert restore(tmp_path / "m.pth", model="mixer_digits").image_size == 8
    with pytest.raises(
        ValueError, match=r"does not fit convmixer_96_4.* use model=mixer_digits image_size=8"
    ):
        restore(tmp_path / "m.pth", model="convmixer_96_4")


def test_another_number_of_classes_has_no_names(tmp_path: Path) -> None:
    path = write_run(tmp_path / "best.ckpt", trained(own_mixer()))
    restored = restore(path, num_classes=5)
    assert restored.classes is None
    assert restored.report.fresh == ["head.weight", "head.bias"]


# -------------------------------------------------------------------------------------------- our exports


@pytest.mark.parametrize("make", [own_mixer, relu_convmixer])
def test_an_export_needs_no_further_word(tmp_path: Path, make: type) -> None:
    model = trained(make())
    restored = restore(write_run(tmp_path / "best.ckpt", model))
    save_own(tmp_path / "model.safetensors", restored)
    again = restore(tmp_path / "model.safetensors")
    assert_same_logits(model, again.model)
    assert (again.image_size, again.classes, again.preprocessing) == (8, CLASSES, SEEN)
    assert again.report.checkpoint.kind == "export of this project"


def test_an_export_says_it_in_json_for_others(tmp_path: Path) -> None:
    save_own(tmp_path / "m.safetensors", restore(write_run(tmp_path / "best.ckpt", trained(own_mixer()))))
    with safe_open(tmp_path / "m.safetensors", framework="np") as file:
        metadata = file.metadata()
        assert "blocks.0.mlp_tokens.fc1.weight" in file.keys()  # noqa: SIM118
    assert metadata["format"] == "pt"  # which transformers and timm ask for
    assert json.loads(metadata["mixer_lightning"]) == {
        "image_size": 8,
        "classes": CLASSES,
        **SEEN,
    }


def test_metadata_of_others_and_damaged_ones(tmp_path: Path) -> None:
    state = own_mixer().state_dict()
    save_file(state, tmp_path / "other.safetensors", metadata={"format": "pt", "author": "someone"})
    assert read(tmp_path / "other.safetensors").kind == "timm's names"
    save_file(state, tmp_path / "list.safetensors", metadata={"mixer_lightning": "[1]"})
    with pytest.raises(ValueError, match=r"list.safetensors holds list, not a mapping"):
        read(tmp_path / "list.safetensors")
    save_file(state, tmp_path / "cut.safetensors", metadata={"mixer_lightning": '{"classes": ['})
    with pytest.raises(
        ValueError, match=r"cut.safetensors: its metadata 'mixer_lightning' is not readable JSON"
    ):
        read(tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match=r"ends in .safetensors, not .*m.pth"):
        save_own(tmp_path / "m.pth", restore(tmp_path / "other.safetensors"))


@pytest.fixture
def deit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """conf/model has one more file: of a family that has no entry in families.py."""
    folder = tmp_path / "conf_model"
    shutil.copytree(presets.MODEL_FOLDER, folder)
    target = "_target_: mixer_lightning.models.baselines.timm_backbone"
    (folder / "deit_ti16.yaml").write_text(f"{target}\ntimm_name: deit_tiny_patch16_224\n")
    monkeypatch.setattr(presets, "MODEL_FOLDER", folder)
    return tmp_path


def test_a_model_that_tensors_do_not_tell_is_the_one_that_its_run_names(deit: Path) -> None:
    model = trained(create_model("deit_ti16", num_classes=3, image_size=32))
    content = {
        "state_dict": {f"model.{key}": tensor for key, tensor in model.state_dict().items()},
        "recipe": {"model": {}, "image_size": 32, "augment": AUGMENT, "choices": {"model": "deit_ti16"}},
        "classes": CLASSES,
    }
    torch.save(content, deit / "best.ckpt")
    restored = restore(deit / "best.ckpt")
    save_own(deit / "own.safetensors", restored)
    images = torch.randn(2, 3, 32, 32)
    for each in (restored, restore(deit / "own.safetensors")):
        assert (each.name, each.image_size, each.classes) == ("deit_ti16", 32, CLASSES)
        assert each.preprocessing == SEEN
        with torch.no_grad():
            assert torch.equal(each.model(images), model(images))
    with pytest.raises(ValueError, match="This file holds weights of deit_ti16: use model=deit_ti16"):
        restore(deit / "best.ckpt", model="mixer_digits")


def test_parameters_that_tensors_do_not_tell_are_those_of_the_run(tmp_path: Path) -> None:
    sizes = {"block_size": 2, "halo_size": 1, "base_width": 8, "num_blocks": [1, 1, 1, 1]}
    model = trained(create_model("halonet_h0", num_classes=3, image_size=64, overrides=sizes))
    node = model_node("halonet_h0") | sizes
    content = {
        "state_dict": {f"model.{key}": tensor for key, tensor in model.state_dict().items()},
        "recipe": {"model": node, "image_size": 64, "augment": AUGMENT, "choices": {"model": "halonet_h0"}},
        "classes": CLASSES,
    }
    torch.save(content, tmp_path / "best.ckpt")
    restored = restore(tmp_path / "best.ckpt")
    save_own(tmp_path / "own.safetensors", restored)
    images = torch.randn(2, 3, 64, 64)
    for each in (restored, restore(tmp_path / "own.safetensors")):
        assert each.parameters == sizes
        with torch.no_grad():
            assert torch.equal(each.model(images), model(images))
    for key, value, message in (
        ("num_blocks", [1, 1, 10**9, 1], "num_blocks=.* is not of the model that its tensors are of"),
        ("base_width", 128, "make a larger model than its tensors"),
    ):
        content["recipe"]["model"] = node | {key: value}
        torch.save(content, tmp_path / "best.ckpt")
        with pytest.raises(ValueError, match=message):
            restore(tmp_path / "best.ckpt")


def test_a_name_that_is_not_a_model_is_not_believed(tmp_path: Path) -> None:
    content = {"state_dict": {"model.w": torch.zeros(2)}, "recipe": {"choices": {"model": "../../secret"}}}
    torch.save(content, tmp_path / "best.ckpt")
    with pytest.raises(ValueError, match="does not tell what model it holds"):
        restore(tmp_path / "best.ckpt")
