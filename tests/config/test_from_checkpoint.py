"""What a checkpoint's name and surroundings imply for a recipe, and that the user has the last word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from mixer_lightning.api import create_model
from mixer_lightning.checkpoints.save import save_timm
from mixer_lightning.config.compose import compose, compose_one
from mixer_lightning.config.from_checkpoint import (
    Overrides,
    check_there,
    evaluation_overrides_from_checkpoint,
    model_named,
    overrides_from_checkpoint,
)
from mixer_lightning.config.groups import groups
from mixer_lightning.config.overrides import quoted, values_by_key
from mixer_lightning.files import CONF

MODELS = groups()["model"]
NOTHING = Overrides({}, {})
#: Of vit_jax/input_pipeline.py and big_vision: pixels between -1 and 1.
GOOGLES = {"augment.mean": [0.5, 0.5, 0.5], "augment.std": [0.5, 0.5, 0.5]}


def from_checkpoint(*overrides: str) -> Overrides:
    """What the checkpoint of a command line of finetune.py implies."""
    return overrides_from_checkpoint(values_by_key(overrides), groups())


def for_evaluation(*overrides: str) -> Overrides:
    """The same of `mixer evaluate`."""
    return evaluation_overrides_from_checkpoint(values_by_key(overrides), groups())


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
    assert compose_one("finetune", [*words, "batch_size=32"]).device_batch == 32
    assert compose_one("finetune", [*words, "batch_size=32", "device_batch=8"]).device_batch == 8
    for more in (["batch_size=128"], ["batch_size=16,32"], []):
        assert from_checkpoint(*words, *more).values == GOOGLES
    assert compose_one("finetune", words).device_batch == 64


def test_normalisation_follows_the_family() -> None:
    assert from_checkpoint("checkpoint=Mixer-B_16.npz") == ({"model": "mixer_b16"}, GOOGLES)
    convmixer = from_checkpoint("checkpoint=timm:convmixer_768_32.in1k").values
    assert convmixer["augment.mean"] == [0.485, 0.456, 0.406]
    assert from_checkpoint("checkpoint=timm:mixer_b16_224.miil_in21k").values["augment.std"] == [
        1.0,
        1.0,
        1.0,
    ]


def test_a_run_directory_tells_model_size_and_normalisation(tmp_path: Path) -> None:
    recipe = {
        "model": {},
        "image_size": 32,
        "augment": {"mean": [0.1, 0.2, 0.3], "std": [1, 2, 3]},
        "choices": {"model": "mixer_s16"},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for checkpoint in (tmp_path, tmp_path / "best.ckpt"):
        word = f"checkpoint={checkpoint}"
        assert from_checkpoint(word) == (
            {"model": "mixer_s16"},
            {"image_size": 32, "augment.mean": [0.1, 0.2, 0.3], "augment.std": [1, 2, 3]},
        )
        found = compose_one("finetune", [word])
        assert (found.choices["model"], found.image_size) == ("mixer_s16", 32)
        assert (found.augment["mean"], found.augment["std"]) == ([0.1, 0.2, 0.3], [1, 2, 3])
        assert "from_checkpoint" not in "".join(found.choices)
    words = [f"checkpoint={tmp_path}", "model=mixer_b16", "augment.std=[1,1,1]"]
    assert "image_size" not in from_checkpoint(*words).values  # another model's size is its own
    other = compose_one("finetune", words)
    assert (other.choices["model"], other.image_size) == ("mixer_b16", 224)
    assert (other.augment["mean"], other.augment["std"]) == ([0.1, 0.2, 0.3], [1, 1, 1])


def test_what_a_checkpoint_implies_stands_above_files_and_below_the_command_line(tmp_path: Path) -> None:
    recipe = {
        "model": {},
        "image_size": 32,
        "augment": {"mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0]},
        "choices": {"model": "mixer_s16"},
    }
    run_dir, mine = tmp_path / "run", tmp_path / "my" / "experiment"
    run_dir.mkdir()
    mine.mkdir(parents=True)
    (run_dir / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (mine / "birds.yaml").write_text(
        "# @package _global_\nimage_size: 64\naugment: {mean: [0.9, 0.9, 0.9]}\n"
    )
    words = [f"checkpoint={run_dir}", "experiment=birds"]
    folders = (CONF, tmp_path / "my")
    (job,) = compose("finetune", words, folders=folders).jobs
    assert (job.recipe.image_size, job.recipe.augment["mean"]) == (32, [0.1, 0.2, 0.3])
    (job,) = compose(
        "finetune", [*words, "image_size=128", "augment.mean=[0.5,0.5,0.5]"], folders=folders
    ).jobs
    assert (job.recipe.image_size, job.recipe.augment["mean"]) == (128, [0.5, 0.5, 0.5])
    assert job.recipe.augment["std"] == [1.0, 1.0, 1.0]


def test_a_wrong_value_of_a_checkpoint_is_not_blamed_on_a_file(tmp_path: Path) -> None:
    save_timm(create_model("mixer_digits"), tmp_path / "x.pth")
    (tmp_path / "x.pth.json").write_text(json.dumps({"model": "mixer_digits", "image_size": "large"}))
    (message,) = compose("finetune", [f"checkpoint={tmp_path / 'x.pth'}"]).messages
    assert "x.pth.json: 'image_size' must be a whole number of pixels up to 16,384, found 'large'" in message
    recipe = {"model": {}, "image_size": 32, "augment": {"mean": "grey"}, "choices": {"model": "mixer_s16"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (message,) = compose("finetune", [f"checkpoint={tmp_path}"]).messages
    assert message == "'augment.mean' takes list[float], found 'grey'  (of the checkpoint)"


@pytest.mark.parametrize(
    "value", ["train[:99%]", "~/my birds, it's {1}", "a\\b", "", "x=[1]", " a ", "null", "3"]
)
def test_any_value_of_a_run_comes_through_as_it_is(tmp_path: Path, value: str) -> None:
    recipe = compose_one("train", ["data=folder", "model=mixer_digits", "val_split=none"]).to_dict()
    recipe["data"]["name"] = recipe["train_split"] = value
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    found = compose_one("evaluate", [f"checkpoint={tmp_path}"])
    assert (found.data["name"], found.train_split, found.val_split) == (value, value, "none")
    assert found.test_split is None


def test_data_that_is_no_choice_any_more_is_not_taken(tmp_path: Path) -> None:
    recipe = compose_one("train", ["model=mixer_digits"]).to_dict()
    recipe["choices"]["data"] = "no_longer"
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    found = compose_one("evaluate", [f"checkpoint={tmp_path}", "data=cifar10"])
    assert (found.choices["data"], found.image_size) == ("cifar10", 8)


def test_the_file_beside_an_export_goes_before_the_weights_name(tmp_path: Path) -> None:
    view = {"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0], "eval_crop": 0.9, "eval_resize": "square"}
    said = {"model": "mixer_digits", "image_size": 8, "classes": ["a", "b"], **view}
    save_timm(create_model("mixer_digits", num_classes=2), tmp_path / "convmixer_768_32.pth")
    (tmp_path / "convmixer_768_32.pth.json").write_text(json.dumps(said))
    word = f"checkpoint={tmp_path / 'convmixer_768_32.pth'}"
    found = from_checkpoint(word)
    assert found == (
        {"model": "mixer_digits"},
        {"image_size": 8, "augment.mean": [0.1, 0.2, 0.3], "augment.std": [1.0, 2.0, 3.0]},
    )
    judged = for_evaluation(word)
    assert judged.choices == found.choices
    assert {**found.values, "augment.eval_crop": 0.9, "augment.eval_resize": "square"}.items() <= {
        **judged.values
    }.items()
    (tmp_path / "convmixer_768_32.pth.json").write_text("{")
    with pytest.raises(ValueError, match=r"pth\.json is not readable JSON"):
        from_checkpoint(word)
    (message,) = compose("finetune", [word]).messages
    assert "pth.json is not readable JSON" in message


@pytest.mark.parametrize("name", ["mixer_s32", "convmixer_256_8"])
def test_tensors_tell_where_the_name_says_nothing(tmp_path: Path, name: str) -> None:
    model = create_model(name, num_classes=3, image_size=64)
    save_timm(model, tmp_path / "weights.safetensors")
    word = f"checkpoint={tmp_path / 'weights.safetensors'}"
    found = from_checkpoint(word)
    assert found.choices == {"model": name}
    assert found.values.get("image_size") == (64 if name == "mixer_s32" else None)
    mean = [0.5, 0.5, 0.5] if name == "mixer_s32" else [0.485, 0.456, 0.406]
    assert list(found.values["augment.mean"]) == mean
    assert from_checkpoint(word, "model=mixer_b16").values == GOOGLES
    (tmp_path / "weights.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"weights\.safetensors is not a readable safetensors file"):
        from_checkpoint(word)


def test_a_missing_checkpoint_is_named_with_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "mixer_s32.pth").touch()
    check_there(str(tmp_path / "mixer_s32.pth"))
    check_there("timm:mixer_b16_224.goog_in21k")
    with pytest.raises(ValueError, match=r"no weights 'mixer_b16_224'.*did you mean mixer_b16_224\."):
        check_there("timm:mixer_b16_224")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"empty holds neither best\.ckpt nor last\.ckpt nor model\.safe"
    ):
        check_there(str(tmp_path / "empty"))
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
    ],
)
def test_any_text_comes_through_hydra_as_it_is(text: str) -> None:
    word = f"checkpoint={quoted(text)}"
    assert values_by_key([word]) == {"checkpoint": [text]}
    assert compose_one("finetune", [word, "model=mixer_b16", "data=digits"]).checkpoint == text


def test_nothing_follows_from_no_checkpoint() -> None:
    assert (
        from_checkpoint()
        == from_checkpoint("checkpoint=null")
        == from_checkpoint("checkpoint=x.npz")
        == NOTHING
    )


def test_checkpoints_of_a_sweep_must_agree_on_what_they_imply() -> None:
    both = "checkpoint=Mixer-B_16.npz,timm:convmixer_768_32.in1k"
    message = r"another (augment\.\w+, )+(model|augment\.\w+ and more): start one program for each"
    for find in (from_checkpoint, for_evaluation):
        with pytest.raises(ValueError, match=message):
            find(both)
    (said,) = compose("finetune", [both], multirun=True).messages
    assert "start one program for each" in said
    stated = "model=mixer_b16", "augment.mean=[0,0,0]", "augment.std=[1,1,1]"
    assert compose("finetune", [both, *stated], multirun=True).messages == []
    assert from_checkpoint("checkpoint=Mixer-B_16.npz,'x/Mixer-B_16.npz'").choices == {"model": "mixer_b16"}
    found = for_evaluation("checkpoint=Mixer-B_16.npz,x/Mixer-B_16.npz")
    name = "evaluate/Mixer-B_16-and-1-more-accuracy"
    crop = {"eval_crop": 0.875, "eval_resize": "short_side", "eval_interpolation": "area"}
    crop |= {"eval_rounding": "big_vision"}
    crops = {f"augment.{key}": value for key, value in crop.items()}
    assert found == ({"model": "mixer_b16"}, {"name": name, **GOOGLES, **crops})


def test_evaluation_sees_images_as_the_published_weights_were_evaluated() -> None:
    """Mixer: short side 256, centre 224 (arXiv 2105.01601, App. C); ConvMixer: .96, bicubic (its crop_pct)."""
    found = {}
    for checkpoint in ("Mixer-B_16.npz", "convmixer_768_32.pth"):
        augment = compose_one("evaluate", [f"checkpoint={checkpoint}"]).augment
        found[checkpoint] = [augment[key] for key in ("eval_crop", "eval_resize", "eval_interpolation")]
    assert found["Mixer-B_16.npz"] == [0.875, "short_side", "area"]
    assert found["convmixer_768_32.pth"] == [0.96, "short_side", "bicubic"]
    stated = compose_one("evaluate", ["checkpoint=convmixer_768_32.pth", "augment.eval_crop=1.0"]).augment
    assert (stated["eval_crop"], stated["eval_interpolation"]) == (1.0, "bicubic")
    tuned = compose_one("finetune", ["checkpoint=convmixer_768_32.pth"]).augment
    assert tuned["eval_crop"] == 0.875  # fine-tuning has a protocol of its own
