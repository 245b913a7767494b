"""Weights by timm's names, without a network: the hub is played by a folder, or by one that cannot be reached."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf

from mixer_lightning.api import create_model
from mixer_lightning.checkpoints import hub
from mixer_lightning.checkpoints.read import Checkpoint, read
from mixer_lightning.engine.evaluation import other_view

Hub = Callable[..., str]


def small_weights() -> dict[str, torch.Tensor]:
    """timm's own names, at a size that a test can afford: a Mixer of the digits' shape."""
    torch.manual_seed(0)
    model = timm.models.mlp_mixer.MlpMixer(
        num_classes=21, img_size=8, patch_size=1, num_blocks=4, embed_dim=64
    )
    return model.state_dict()


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, bool]]:
    """A hub that gives one file for every name, from the second request on as if from its cache; what was asked."""
    asked: list[tuple[str, str, bool]] = []
    save_file(small_weights(), tmp_path / hub.FILE)

    def download(repository: str, name: str, *, local_files_only: bool) -> str:
        first = not asked
        asked.append((repository, name, local_files_only))
        if first:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache")
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked


def test_weights_are_fetched_where_they_are_not_yet(network: list[tuple[str, str, bool]]) -> None:
    checkpoint = read("timm:mixer_b16_224.goog_in21k")
    repository = "timm/mixer_b16_224.goog_in21k"
    assert network == [(repository, "model.safetensors", True), (repository, "model.safetensors", False)]
    expected = small_weights()
    assert checkpoint.tensors.keys() == expected.keys()
    assert all(torch.equal(checkpoint.tensors[key], value) for key, value in expected.items())
    assert str(checkpoint) == (
        "model.safetensors (timm:mixer_b16_224.goog_in21k: mixer_digits at 8, 21 classes)"
    )
    read(Path("timm:mixer_b16_224.goog_in21k"))
    assert network[-1] == (repository, "model.safetensors", True)  # and no request after that


def test_create_model_takes_a_name_of_timm(network: list[tuple[str, str, bool]]) -> None:
    model = create_model("mixer_digits", num_classes=21, checkpoint="timm:mixer_b16_224.goog_in21k")
    assert torch.equal(model.stem.proj.weight, small_weights()["stem.proj.weight"])


FIRST = {name.partition(".")[0]: name for name in reversed(hub.names())}  # the first weights of each model


@pytest.mark.parametrize(
    "name", sorted({*FIRST.values(), *(name for name in hub.names() if "mixer" in name)})
)
def test_preprocessing_is_timms(name: str, network: list[tuple[str, str, bool]]) -> None:
    found = read(f"timm:{name}").preprocessing
    expected = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    assert tuple(found["mean"]) == expected["mean"]
    assert tuple(found["std"]) == expected["std"]
    assert (found["eval_crop"], found["eval_interpolation"]) == (
        expected["crop_pct"],
        expected["interpolation"],
    )
    assert (found["mean"] == [0, 0, 0]) == ("miil" in name)


def test_without_a_network_it_says_which_file_to_bring(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(repository: str, name: str, *, local_files_only: bool) -> str:
        raise ConnectionError("Name or service not known\nand much more")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(FileNotFoundError) as error:
        create_model("mixer_digits", num_classes=10, checkpoint="timm:mixer_b16_224.goog_in21k")
    message = str(error.value)
    assert message.startswith(
        "timm:mixer_b16_224.goog_in21k is not on this machine and cannot be fetched (Name or"
    )
    assert "download model.safetensors and config.json from " in message
    assert "/timm/mixer_b16_224.goog_in21k" in message
    assert message.endswith("give the file: checkpoint=<folder>/model.safetensors")
    assert "much more" not in message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mixer_b16_224.goog_in22k", "timm has no weights .*: did you mean mixer_b16_224.goog_in21k"),
        ("mixer_b16_224", "did you mean mixer_b16_224"),  # whose weights, it must say
        ("mixer_s32_224.untrained", "timm has no weights"),
        ("perceiver.in1k", "of a model of conf/model: `mixer models` names those that it has"),
    ],
)
def test_names_that_timm_has_no_weights_for(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(f"timm:{name}")


def read_with_config(folder: Path, config: object) -> Checkpoint:
    save_file(small_weights(), folder / hub.FILE)
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return read(folder / hub.FILE)


def test_a_config_in_the_folder_of_the_file_is_read(tmp_path: Path) -> None:
    """What `timm.models.save_for_hf` writes, which is what stands on the hub."""
    model = timm.create_model("mixer_s32_224")
    model.pretrained_cfg = timm.get_pretrained_cfg("mixer_b16_224.miil_in21k").to_dict()
    save_config_for_hf(model, tmp_path / "config.json")
    config = json.loads((tmp_path / "config.json").read_text())
    assert read_with_config(tmp_path, config).preprocessing == {
        "mean": [0.0, 0.0, 0.0],
        "std": [1.0, 1.0, 1.0],
        "eval_crop": 0.875,
        "eval_resize": "short_side",
        "eval_interpolation": "bilinear",
        "eval_rounding": "torchvision",
    }


@pytest.mark.parametrize("config", ["no json", [], {}, {"architecture": "resnet50", "mean": [0, 0, 0]}])
def test_other_programs_configs_are_left_alone(tmp_path: Path, config: object) -> None:
    assert read_with_config(tmp_path, config).preprocessing == {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "eval_crop": 0.875,
        "eval_resize": "short_side",
        "eval_interpolation": "area",
        "eval_rounding": "big_vision",
    }


def test_a_folder_as_timm_saves_it_stands_for_its_weights(tmp_path: Path) -> None:
    """timm's save_for_hf writes config.json and, unless told otherwise, pytorch_model.bin; safetensors go first."""
    model = timm.create_model("resnet18", num_classes=3)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "pytorch_model.bin"]
    assert hub.file_in(tmp_path) == tmp_path / "pytorch_model.bin"
    assert torch.equal(read(tmp_path).tensors["fc.weight"], model.fc.weight)
    timm.models.save_for_hf(model, tmp_path, safe_serialization="both")
    assert hub.file_in(tmp_path) == tmp_path / hub.FILE


def test_the_view_of_a_validation_is_timms() -> None:
    found = {name: view for name in hub.names() if (view := hub.validation_view(name))}
    assert {"convnext_tiny.fb_in1k", "dm_nfnet_f4.dm_in1k", "resnet50.tv2_in1k"} < found.keys()
    for name in hub.names():
        config = timm.get_pretrained_cfg(name).to_dict()
        train, test = (
            timm.data.resolve_data_config({}, pretrained_cfg=config, use_test_size=use)
            for use in (False, True)
        )
        if train == test:
            assert name not in found
        else:
            assert found[name] == {"image_size": test["input_size"][-1], "eval_crop": test["crop_pct"]}


def test_an_evaluation_says_which_images_timms_figure_is_of() -> None:
    said = other_view("timm:convnext_tiny.fb_in1k", image_size=224, eval_crop=0.875)
    assert said is not None
    assert said.endswith("trained at 224 px, and timm validates it with image_size=288 augment.eval_crop=1")
    assert other_view("timm:convnext_tiny.fb_in1k", image_size=288, eval_crop=1.0) is None
    assert other_view("timm:mixer_b16_224.goog_in21k", image_size=224, eval_crop=0.875) is None
    assert other_view("safetensors", image_size=224, eval_crop=0.875) is None
