"""What a checkpoint's name and surroundings imply for a recipe, and that the user has the last word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from mixer_lightning.api import create_model
from mixer_lightning.checkpoints.save import save_timm
from mixer_lightning.config.compose import compose, groups
from mixer_lightning.config.from_checkpoint import (
    DEVICE_BATCH,
    check_there,
    implied,
    implied_for_evaluation,
    model_named,
    override,
)
from mixer_lightning.config.overrides import unquoted

MODELS = groups()["model"]


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("timm:mixer_b16_224.goog_in21k", "mixer_b16"),
        ("timm:mixer_l16_224.goog_in21k_ft_in1k", "mixer_l16"),
        ("timm:convmixer_768_32.in1k", "convmixer_768_32"),
        ("timm:convmixer_1024_20_ks9_p14.in1k", "convmixer_1024_20"),
        ("~/weights/Mixer-B_16.npz", "mixer_b16"),
        ("Mixer-L_16.npz", "mixer_l16"),
        ("convmixer_1536_20_ks9_p7.pth.tar", "convmixer_1536_20"),
        ("weights.npz", None),
    ],
)
def test_published_names(name: str, model: str | None) -> None:
    assert model_named(name, MODELS) == model


def test_a_small_batch_is_one_forward_pass() -> None:
    words = ["checkpoint=Mixer-B_16.npz", "data=digits"]
    found = implied([*words, "batch_size=32"], MODELS)
    assert "device_batch=32" in found
    (job,) = compose("finetune", [*words, "batch_size=32", *found]).jobs
    assert job.recipe["device_batch"] == 32
    for more in (["batch_size=32", "device_batch=8"], ["batch_size=128"], ["batch_size=16,32"], []):
        assert not any("device_batch" in word for word in implied([*words, *more], MODELS))
    (job,) = compose("finetune", words).jobs
    assert job.recipe["device_batch"] == DEVICE_BATCH


def test_normalisation_follows_the_family() -> None:
    assert implied(["checkpoint=Mixer-B_16.npz"], MODELS) == ["model=mixer_b16"]
    assert "augment.mean=[0.485,0.456,0.406]" in implied(["checkpoint=timm:convmixer_768_32.in1k"], MODELS)
    assert "augment.std=[1.0,1.0,1.0]" in implied(["checkpoint=timm:mixer_b16_224.miil_in21k"], MODELS)


def test_a_run_directory_tells_model_size_and_normalisation(tmp_path: Path) -> None:
    recipe = {
        "model": {},
        "image_size": 32,
        "augment": {"mean": [0.1, 0.2, 0.3], "std": [1, 2, 3]},
        "choices": {"model": "mixer_s16"},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for checkpoint in (tmp_path, tmp_path / "best.ckpt"):
        words = [f"checkpoint={checkpoint}"]
        found = implied(words, MODELS)
        assert found == [
            "model=mixer_s16", "image_size=32", "augment.mean=[0.1,0.2,0.3]", "augment.std=[1,2,3]",
        ]  # fmt: skip
        (job,) = compose("finetune", [*words, *found]).jobs
        assert (job.choices["model"], job.recipe["image_size"]) == ("mixer_s16", 32)
    other = implied([f"checkpoint={tmp_path}", "model=mixer_b16", "augment.std=[1,1,1]"], MODELS)
    assert other == ["augment.mean=[0.1,0.2,0.3]"]  # another model's size is its own


def test_the_file_beside_an_export_goes_before_the_weights_name(tmp_path: Path) -> None:
    view = {"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0], "eval_crop": 0.9, "eval_resize": "square"}
    said = {"model": "mixer_s16", "image_size": 32, "classes": ["a", "b"], **view}
    (tmp_path / "convmixer_768_32.pth.json").write_text(json.dumps(said))
    words = [f"checkpoint={tmp_path / 'convmixer_768_32.pth'}"]
    found = implied(words, MODELS)
    assert found == [
        "model=mixer_s16", "image_size=32", "augment.mean=[0.1,0.2,0.3]", "augment.std=[1.0,2.0,3.0]",
    ]  # fmt: skip
    judged = implied_for_evaluation(words, MODELS)
    assert {*found, "augment.eval_crop=0.9", "augment.eval_resize='square'"} <= {*judged}
    (tmp_path / "convmixer_768_32.pth.json").write_text("{")
    with pytest.raises(ValueError, match=r"pth\.json is no readable JSON"):
        implied(words, MODELS)


@pytest.mark.parametrize("name", ["mixer_s32", "convmixer_256_8"])
def test_tensors_tell_where_the_name_says_nothing(tmp_path: Path, name: str) -> None:
    model = create_model(name, num_classes=3, image_size=64)
    save_timm(model, tmp_path / "weights.safetensors")
    found = implied([f"checkpoint={tmp_path / 'weights.safetensors'}"], MODELS)
    assert found[0] == f"model={name}"
    assert ("image_size=64" in found) == (name == "mixer_s32")
    mean = "[0.5,0.5,0.5]" if name == "mixer_s32" else "[0.485,0.456,0.406]"
    assert f"augment.mean={mean}" in found
    assert implied([f"checkpoint={tmp_path / 'weights.safetensors'}", "model=mixer_b16"], MODELS) == []
    (tmp_path / "weights.safetensors").write_bytes(b"no weights")
    assert implied([f"checkpoint={tmp_path / 'weights.safetensors'}"], MODELS) == []


def test_a_missing_checkpoint_is_named_with_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "mixer_s32.pth").touch()
    check_there(str(tmp_path / "mixer_s32.pth"))
    check_there("timm:mixer_b16_224")
    with pytest.raises(FileNotFoundError, match=r"did you mean '.*/mixer_s32\.pth'"):
        check_there(str(tmp_path / "mixer_s3.pth"))
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint file .*/x/y\.npz$"):
        check_there(str(tmp_path / "x" / "y.npz"))


@pytest.mark.parametrize(
    "text",
    [
        r"C:\birds\new",
        "C:\\",
        r"\\server\x",
        "it's",
        r"a\'b",
        r"a\\'",
        '"q"',
        "a,b",
        "x=[1]",
        " a ",
        "\\'",
        "",
    ],
)
def test_any_text_comes_through_hydra_as_it_is(text: str) -> None:
    (job,) = compose("finetune", [override("checkpoint", text), "model=mixer_b16", "data=digits"]).jobs
    assert job.recipe["checkpoint"] == text
    assert unquoted(override("checkpoint", text).partition("=")[2]) == text


def test_nothing_follows_from_no_checkpoint() -> None:
    assert (
        implied([], MODELS)
        == implied(["checkpoint=null"], MODELS)
        == implied(["checkpoint=x.npz"], MODELS)
        == []
    )


def test_checkpoints_of_a_sweep_must_agree_on_what_they_imply():
    both = "checkpoint=Mixer-B_16.npz,timm:convmixer_768_32.in1k"
    with pytest.raises(
        ValueError, match=r"another augment\.mean, augment\.std, model: start one program for each"
    ):
        implied([both], MODELS)
    with pytest.raises(ValueError, match="start one program"):
        implied_for_evaluation([both], MODELS)
    assert implied(["checkpoint=Mixer-B_16.npz,'x/Mixer-B_16.npz'"], MODELS) == ["model=mixer_b16"]
    found = implied_for_evaluation(["checkpoint=Mixer-B_16.npz,x/Mixer-B_16.npz"], MODELS)
    assert found == ["model=mixer_b16", "name='evaluate/Mixer-B_16-and-1-more-accuracy'"]
