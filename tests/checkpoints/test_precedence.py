"""What a checkpoint is goes by the command line, the file itself, the file beside it, its name: in every program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from mixer_lightning.api import create_model
from mixer_lightning.checkpoints.export import restore_for_export
from mixer_lightning.checkpoints.load import load
from mixer_lightning.checkpoints.restore import Restored, restore
from mixer_lightning.checkpoints.save import save_flax, save_own, save_timm
from mixer_lightning.config.compose import compose, compose_one
from mixer_lightning.config.recipe import EvaluationRecipe, Recipe
from mixer_lightning.engine.setup import new_model
from mixer_lightning.models.convmixer import ConvMixer
from mixer_lightning.models.mixer import Mixer
from mixer_lightning.studies.suites import read_suite
from mixer_lightning.studies.transfer_runs import SuiteRuns

#: Of no file of conf/model.
SIZES = {"patch_size": 4, "num_blocks": 2, "hidden_dim": 24, "tokens_mlp_dim": 6, "channels_mlp_dim": 40}
#: Of no family, so that nothing usual is taken for it.
VIEW = {
    "mean": [0.1, 0.2, 0.3],
    "std": [0.4, 0.5, 0.6],
    "eval_crop": 0.7,
    "eval_resize": "square",
    "eval_interpolation": "bicubic",
}


def trained(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.2 * torch.rand(tensor.shape, generator=generator))
    return model.eval()


def odd_mixer() -> nn.Module:
    return trained(Mixer(**SIZES, num_classes=3, image_size=12))


def write_run(path: Path, model: nn.Module, recipe: dict[str, Any]) -> Path:
    state = {f"model.{key}": tensor for key, tensor in model.state_dict().items()}
    path.parent.mkdir(exist_ok=True, parents=True)
    torch.save({"state_dict": state, "recipe": recipe, "classes": ["a", "b", "c"], "step": 1}, path)
    return path


def run_recipe(*overrides: str) -> dict[str, Any]:
    recipe = compose_one("train", ["data=digits", *overrides]).to_dict()
    recipe["augment"] |= VIEW
    return recipe


def programs(checkpoint: Path, *overrides: str) -> dict[str, Recipe | EvaluationRecipe]:
    """The recipe with which each program that composes one goes on."""
    word = f"checkpoint={checkpoint}"
    runs = SuiteRuns(read_suite("vtab"), folder=Path("x"), overrides=[word, *overrides], seeds=[0])
    task = runs.suite.tasks[0]
    return {
        "finetune": compose_one("finetune", [word, "data=digits", *overrides]),
        "evaluate": compose_one("evaluate", [word, "data=digits", *overrides]),
        "transfer": runs.final(task, 0.01)[0].recipe,
    }


def restored_by(checkpoint: Path) -> list[Restored]:
    """As predict and export do."""
    return [restore(checkpoint), restore_for_export(str(checkpoint), to="safetensors")]


@pytest.mark.parametrize("name", ["run/best.ckpt", "Mixer-B_16-birds.ckpt", "convmixer_96_4-birds.ckpt"])
def test_a_run_is_what_its_file_says_wherever_it_lies_and_whatever_it_is_called(
    tmp_path: Path, name: str
) -> None:
    recipe = run_recipe("model=convmixer_96_4", "image_size=12")
    model = trained(create_model("convmixer_96_4", num_classes=3, image_size=12))
    path = write_run(tmp_path / name, model, recipe)
    for program, found in programs(path).items():
        assert (found.choices["model"], found.image_size) == ("convmixer_96_4", 12), program
        keys = VIEW if program == "evaluate" else ("mean", "std")  # fine-tuning has a view of its own
        assert {key: found.augment[key] for key in keys} == {key: VIEW[key] for key in keys}, program
    for restored in restored_by(path):
        assert (restored.name, restored.image_size) == ("convmixer_96_4", 12)
        assert {key: restored.preprocessing[key] for key in VIEW} == VIEW
        assert restored.classes == ["a", "b", "c"]


def test_the_file_goes_before_the_recipe_beside_it_and_the_command_line_before_both(tmp_path: Path) -> None:
    model = trained(create_model("convmixer_96_4", num_classes=3, image_size=12))
    path = write_run(
        tmp_path / "run" / "best.ckpt", model, run_recipe("model=convmixer_96_4", "image_size=12")
    )
    beside = run_recipe("model=mixer_digits", "image_size=16")
    beside["augment"]["mean"] = [0.9, 0.9, 0.9]
    (tmp_path / "run" / "recipe.yaml").write_text(yaml.safe_dump(beside))
    for checkpoint in (path, path.parent):
        for found in programs(checkpoint).values():
            assert (found.choices["model"], found.image_size) == ("convmixer_96_4", 12)
            assert found.augment["mean"] == VIEW["mean"]
        for found in programs(checkpoint, "image_size=10", "augment.mean=[0,0,0]").values():
            assert (found.image_size, found.augment["mean"]) == (10, [0, 0, 0])


def test_an_export_goes_before_its_sidecar_and_that_before_the_name(tmp_path: Path) -> None:
    model = trained(create_model("mixer_digits", num_classes=3, image_size=8))
    restored = restore(
        write_run(tmp_path / "x.ckpt", model, run_recipe("model=mixer_digits", "image_size=8"))
    )
    beside = {"mean": [0.9, 0.9, 0.9], "eval_crop": 0.5, "classes": ["x", "y", "z"]}
    path = tmp_path / "mixer_b16_224.miil_in21k.safetensors"
    save_own(path, restored)
    path.with_name(path.name + ".json").write_text(json.dumps(beside))
    for each in restored_by(path):
        assert {key: each.preprocessing[key] for key in VIEW} == VIEW
        assert each.classes == ["a", "b", "c"]
    save_timm(model, path)  # states nothing itself
    for each in restored_by(path):
        assert (each.preprocessing["mean"], each.preprocessing["eval_crop"]) == ([0.9] * 3, 0.5)
        assert each.preprocessing["std"] == [1.0, 1.0, 1.0]  # by the name: Alibaba's
        assert each.classes == ["x", "y", "z"]
    for program, found in programs(path).items():
        assert (found.choices["model"], found.image_size) == ("mixer_digits", 8), program
        assert (found.augment["mean"], found.augment["std"]) == ([0.9] * 3, [1.0] * 3), program
    path.with_name(path.name + ".json").unlink()
    assert restore(path).preprocessing["mean"] == [0.0, 0.0, 0.0]
    (tmp_path / "miil").mkdir()
    save_timm(model, tmp_path / "miil" / "weights.pth")  # the name of a folder says nothing
    assert restore(tmp_path / "miil" / "weights.pth").preprocessing["mean"] == [0.5, 0.5, 0.5]
    for found in programs(tmp_path / "miil" / "weights.pth").values():
        assert found.augment["mean"] == [0.5, 0.5, 0.5]


def test_what_an_older_run_or_export_leaves_out_is_as_it_was(tmp_path: Path) -> None:
    """There was one rounding of sizes before the recipe named it: torchvision's. A Mixer's usual one is another."""
    recipe = run_recipe("model=mixer_digits", "image_size=8")
    del recipe["augment"]["eval_rounding"]
    model = trained(create_model("mixer_digits", num_classes=3, image_size=8))
    path = write_run(tmp_path / "run" / "best.ckpt", model, recipe)
    for checkpoint in (path, path.parent):
        found = compose_one("evaluate", [f"checkpoint={checkpoint}", "data=digits"]).augment
        assert (found["eval_rounding"], found["eval_interpolation"]) == ("torchvision", "bicubic")
    save_timm(model, tmp_path / "birds.pth")
    (tmp_path / "birds.pth.json").write_text(json.dumps(VIEW))
    assert restore(tmp_path / "birds.pth").preprocessing["eval_rounding"] == "torchvision"
    assert compose_one("evaluate", [f"checkpoint={tmp_path / 'birds.pth'}"]).augment["eval_rounding"] == (
        "torchvision"
    )


def test_tensors_go_before_the_name(tmp_path: Path) -> None:
    save_flax(trained(create_model("mixer_digits", num_classes=3)), tmp_path / "Mixer-B_16.npz")
    for found in programs(tmp_path / "Mixer-B_16.npz").values():
        assert (found.choices["model"], found.image_size) == ("mixer_digits", 8)


# ------------------------------------------------------------------- models of sizes that no file of conf/model has


def assert_takes(recipe: Recipe | EvaluationRecipe, checkpoint: Path, original: nn.Module) -> None:
    """The recipe's own model takes the weights, and computes the same features."""
    model = new_model(recipe, num_classes=5, stochastic_depth=0.0, head_bias=0.0).eval()
    load(model, checkpoint)
    images = torch.randn(2, 3, recipe.image_size, recipe.image_size)
    with torch.no_grad():
        found, expected = model.forward_features(images), original.forward_features(images)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["Mixer-B_16.npz", "weights.safetensors", "run/best.ckpt"])
def test_a_mixer_of_any_size_goes_through_every_program(tmp_path: Path, name: str) -> None:
    model, path = odd_mixer(), tmp_path / name
    if path.suffix == ".npz":
        save_flax(model, path)
    elif path.suffix == ".safetensors":
        save_timm(model, path)
    else:
        stated = [f"model.{key}={size}" for key, size in SIZES.items()]
        write_run(path, model, run_recipe("model=mixer_s16", "image_size=12", *stated))
    for recipe in programs(path).values():
        assert recipe.image_size == 12
        assert {key: recipe.model[key] for key in SIZES} == SIZES
        assert_takes(recipe, path, model)
    for restored in restored_by(path):
        assert restored.image_size == 12
        assert (restored.model.num_features, restored.name) == (24, None)


def test_the_models_own_numbers_of_a_run_are_kept_and_the_command_line_has_the_last_word(
    tmp_path: Path,
) -> None:
    path = write_run(
        tmp_path / "run" / "best.ckpt",
        trained(create_model("mixer_digits", image_size=8, num_classes=3)),
        run_recipe("model=mixer_digits", "image_size=8", "model.num_blocks=2"),
    )
    for program, found in programs(path).items():
        assert (found.choices["model"], found.model["num_blocks"]) == ("mixer_digits", 2), program
    for found in programs(path, "model=mixer_digits", "model.num_blocks=3").values():
        assert found.model["num_blocks"] == 3
    for found in programs(path, "model=mixer_s16").values():  # another model has its own
        assert (found.model["num_blocks"], found.image_size) == (8, 224)


def test_a_convmixer_without_its_activation_is_asked_for(tmp_path: Path) -> None:
    sizes = {"dim": 8, "depth": 2, "kernel_size": 4, "patch_size": 2}
    model = trained(ConvMixer(**sizes, activation="relu", num_classes=3, image_size=8))
    save_timm(model, tmp_path / "weights.pth")
    word = f"checkpoint={tmp_path / 'weights.pth'}"
    for program in ("finetune", "evaluate"):
        (message,) = compose(program, [word, "data=digits"]).messages
        assert "does not tell the activation of its ConvMixer" in message
        assert "model.activation=relu" in message
    recipe = compose_one("finetune", [word, "data=digits", "image_size=8", "model.activation=relu"])
    assert_takes(recipe, tmp_path / "weights.pth", model)


def test_a_model_of_other_sizes_has_no_published_row(tmp_path: Path) -> None:
    save_flax(odd_mixer(), tmp_path / "odd.npz")
    suite = read_suite("avg5").only(["pets"])
    odd = SuiteRuns(suite, folder=Path("x"), overrides=[f"checkpoint={tmp_path / 'odd.npz'}"], seeds=[0])
    known = SuiteRuns(suite, folder=Path("x"), overrides=["checkpoint=timm:mixer_b16_224"], seeds=[0])
    assert (odd.check(), known.check()) == ("", "mixer_b16")
