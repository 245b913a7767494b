"""A wrong recipe is refused, whatever is wrong with it and wherever it stands, before anything heavy is imported."""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer_lightning.config.check import check
from mixer_lightning.config.compose import Composition, compose, compose_one
from mixer_lightning.config.groups import groups
from mixer_lightning.config.recipe import FREE_KEYS, Duration, Recipe, load_recipe
from mixer_lightning.config.signatures import fits, signature
from mixer_lightning.files import CONF
from mixer_lightning.results import differing_keys
from mixer_lightning.targets import build


def messages(*overrides: str, folders: tuple[Path, ...] = (CONF,)) -> list[str]:
    return compose("train", overrides, folders=folders).messages


def refused(*overrides: str) -> str:
    """The one message about a command line."""
    (message,) = messages(*overrides)
    return message


def experiment(folder: Path, text: str, name: str = "mine") -> Composition:
    """A file of one's own in a --config-dir, composed."""
    (folder / "experiment").mkdir(exist_ok=True)
    (folder / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{text}")
    return compose("train", [f"experiment={name}"], folders=(CONF, folder))


# -------------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("modle=mixer_s16", "unknown key 'modle': did you mean 'model'?"),
        ("sede=3", "unknown key 'sede': did you mean 'seed'?"),
        ("xylophone=3", "unknown key 'xylophone'"),
        ("+xylophone=3", "unknown key 'xylophone'"),
        ("optimizr.lr=0.1", "unknown key 'optimizr': did you mean 'optimizer'?"),
        ("optimizer.lrr=0.1", "unknown key 'optimizer.lrr': did you mean 'optimizer.lr'?"),
        ("+optimizer.lrr=0.1", "unknown key 'optimizer.lrr': did you mean 'optimizer.lr'?"),
        ("model.dimm=3", "unknown key 'model.dimm': did you mean 'model.dim'?"),
        ("duration.step=3", "unknown key 'duration.step': did you mean 'duration.steps'?"),
        ("trainer.acelerator=cpu", "unknown key 'trainer.acelerator': did you mean 'trainer.accelerator'?"),
        (
            "evals.accuracy.split=[test]",
            "unknown key 'evals.accuracy.split': did you mean 'evals.accuracy.splits'?",
        ),
        ("model=mixer_s", "unknown model 'mixer_s': did you mean 'mixer_s"),
        ("optimizer=adm", "unknown optimizer 'adm': did you mean 'adam'?"),
        ("logger=[wandb,tensorbord]", "unknown logger 'tensorbord': did you mean 'tensorboard'?"),
        ("evals=acuracy", "unknown evals 'acuracy': did you mean 'accuracy'?"),
        ("schedule=zzz", "unknown schedule 'zzz'. There are: constant, cosine, linear, triangular"),
        ("digits", "'digits' is not of the form key=value"),
        ("optimizer.lr=0.1,0.2", "names several values: add -m"),
        ("model=mixer_s16,mixer_b16", "names several values: add -m"),
        ("~image_size", "'image_size' is missing (int)"),
        ("~model.dim", "'model.dim' is missing (int)"),
        ("~model._target_", "'model' has no '_target_'"),
        ("model._target_=mixer_lightning.models.mixer.Mixr", "'model._target_': there is no"),
        ("model._target_=no_such.module.Thing", "'model._target_': there is no 'no_such.module.Thing'"),
        ("model._target_=5", "'model._target_': there is no '5'"),
        ("optimizer=3", "unknown optimizer '3'"),
        ("logger.wandb=3", "'logger.wandb' must be a mapping, found 3"),
    ],
)
def test_typing_errors(override, message):
    assert message in refused(override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=fast", "'optimizer.lr' takes float, found 'fast'"),
        ("optimizer.lr=true", "'optimizer.lr' takes float, found True"),
        ("optimizer.lr=null", "'optimizer.lr' takes float, found None"),
        ("optimizer.lr=[0.1]", "'optimizer.lr' takes float, found [0.1]"),
        ("seed=1.5", "'seed' takes int, found 1.5"),
        ("seed=true", "'seed' takes int, found True"),
        ("image_size=8.0", "'image_size' takes int, found 8.0"),
        ("batch_size=", "'batch_size' takes int, found ''"),
        ("trainer.compile=1", "'trainer.compile' takes bool, found 1"),
        ("trainer.precision=bf17", "'trainer.precision' takes Literal["),
        ("name=3", "'name' takes str, found 3"),
        ("checkpoint=3", "'checkpoint' takes str | None, found 3"),
        ("duration=3", "'duration' takes Duration, found 3"),
        ("duration.epochs=many", "'duration.epochs' takes float | None, found 'many'"),
        ("duration.steps=1.5", "'duration.steps' takes int | None, found 1.5"),
        ("augment.crop_scale=[0.1]", "'augment.crop_scale' takes tuple[float, float], found [0.1]"),
        ("augment.mean=0.5", "'augment.mean' takes"),
    ],
)
def test_values_of_the_wrong_type(override, message):
    assert message in refused(override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("image_size=0", "'image_size' must be at least 1, found 0"),
        ("batch_size=-5", "'batch_size' must be at least 1, found -5"),
        ("device_batch=0", "'device_batch' must be at least 1, found 0"),
        ("log_every_steps=0", "'log_every_steps' must be at least 1, found 0"),
        ("repeats=0", "'repeats' must be at least 1, found 0"),
        ("stochastic_depth=1.0", "'stochastic_depth' must be at least 0 and below 1, found 1.0"),
        ("stochastic_depth=-0.1", "'stochastic_depth' must be at least 0 and below 1, found -0.1"),
        ("ema_decay=1", "'ema_decay' must be at least 0 and below 1, found 1"),
        ("clip_grad_norm=0", "'clip_grad_norm' must be above 0 (null: no clipping), found 0"),
        ("duration.epochs=0", "'duration' must be above 0, found {'epochs': 0}"),
        ("duration.steps=-3", "'duration' must be above 0, found {'steps': -3}"),
        ("eval_every.steps=0", "'eval_every' must be above 0, found {'steps': 0}"),
        ("duration.epochs=null", "'duration' needs exactly one of epochs and steps, found neither"),
    ],
)
def test_numbers_out_of_range(override, message):
    assert message in refused(override)


@pytest.mark.parametrize("override", ["duration.epochs=inf", "duration.epochs=nan", "optimizer.lr=nan"])
def test_numbers_that_are_none(override):
    assert override.partition("=")[0] in refused(override)


def test_both_steps_and_epochs():
    message = refused("duration.steps=10", "duration.epochs=2")
    assert message.startswith("'duration' needs exactly one of epochs and steps")
    assert "10" in message
    assert "2" in message


@pytest.mark.parametrize(
    ("override", "instead"),
    [
        ("model.image_size=8", "set 'image_size' at the root instead"),
        ("model.stochastic_depth=0.1", "set 'stochastic_depth' at the root instead"),
        ("model.head_bias=1.0", "set 'head_bias' at the root instead"),
        ("model.num_classes=8", "it is not yours to set"),
        ("optimizer.model=x", "it is not yours to set"),
        ("schedule.total_steps=8", "set 'duration' at the root instead"),
        ("schedule.step=8", "it is not yours to set"),
        ("loss.logits=8", "it is not yours to set"),
        ("logger.wandb.run_name=x", "set 'name' at the root instead"),
    ],
)
def test_facts_are_not_for_the_user(override, instead):
    choice = ["logger=wandb"] if override.startswith("logger") else []
    assert refused(*choice, override) == f"'{override.partition('=')[0]}' comes from the run: {instead}"


@pytest.mark.parametrize(
    "override", ["loss._partial_=false", "loss._partial_=3", "model._partial_=true", "~optimizer._partial_"]
)
def test_partial_is_checked(override):
    assert "_partial_" in refused(override)


def test_all_that_is_wrong_is_said_at_once():
    found = messages(
        "modle=x", "seed=x", "seeed=1", "model=mixer_x16", "optimizer.lrr=2", "loss.label_smoothing=much"
    )
    assert len(found) == 6
    for word in ("'modle'", "'seed' takes int", "'seeed'", "mixer_x16", "optimizer.lrr", "label_smoothing"):
        assert any(word in message for message in found), word


def test_compose_one_raises_with_all_messages():
    with pytest.raises(ValueError, match=r"(?s)'modle'.*'optimizer\.lrr'"):
        compose_one("train", ["modle=x", "optimizer.lrr=2"])


def leaves(node: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(node, dict) or not node:
        return [path]
    return [leaf for key, value in node.items() for leaf in leaves(value, (*path, key))]


def edited(recipe: dict[str, Any], path: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A copy, and the mapping in it that holds the last key of a path."""
    changed = copy.deepcopy(recipe)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    return changed, inner


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    """A recipe with all of its parts in use."""
    recipe = compose_one(
        "train",
        ["logger=[wandb,tensorboard]", "optimizer=lamb", "duration.epochs=3", "callbacks=model_summary"],
    ).to_dict()
    del recipe["choices"]
    assert check(recipe, Recipe) == []
    return recipe


def test_every_key_misspelt_is_noticed(whole):
    paths = [path for path in leaves(whole) if path[-1] != "_partial_"]
    assert len(paths) > 60
    for path in paths:
        changed, inner = edited(whole, path)
        key = path[-1]
        wrong = f"{key[0]}{key[2:]}x"
        inner[wrong] = inner.pop(key)
        found = check(changed, Recipe)
        assert any(wrong in problem.message for problem in found), path


def test_every_value_of_another_kind_is_noticed(whole):
    for path in leaves(whole):
        if path[-1] in ("_target_", "_partial_") or path == ("duration", "steps"):
            continue
        changed, inner = edited(whole, path)
        inner[path[-1]] = {"a": [object]}
        keys = {problem.key for problem in check(changed, Recipe)}
        assert any(".".join(path).startswith(key) for key in keys), path


# ------------------------------------------------------------------------------------------ in YAML files


def test_everything_wrong_in_a_file_is_said_with_its_name(tmp_path):
    found = experiment(
        tmp_path,
        "sead: 1\noptimizer: {lrr: 1.0e-3}\nloss: {smoothing: 0.1}\nmodel: {dimm: 3}\nduration: {step: 5}\n",
    ).messages
    words = ("unknown key 'sead'", "optimizer.lrr", "loss.smoothing", "model.dimm", "duration.step")
    assert len(found) == len(words)
    for word in words:
        (message,) = [message for message in found if word in message]
        assert "experiment/mine.yaml)" in message


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("optimizer: {weight_decay: heavy}", "'optimizer.weight_decay' takes float, found 'heavy'"),
        ("image_size: 8.5", "'image_size' takes int, found 8.5"),
        ("model: {_target_: mixer_lightning.models.mixer.Mixr}", "there is no 'mixer_lightning.models.mixer"),
        ("duration: {epochs: -1}", "'duration' must be above 0"),
    ],
)
def test_the_file_that_is_named_is_the_one_that_has_the_last_word(tmp_path, text, word):
    (message,) = experiment(tmp_path, text).messages
    assert word in message
    assert "experiment/mine.yaml)" in message


def test_what_stands_in_a_file_and_on_the_command_line_is_the_command_lines(tmp_path):
    experiment(tmp_path, "optimizer: {lr: slow}")
    found = compose("train", ["experiment=mine", "optimizer.lr=fast"], folders=(CONF, tmp_path)).messages
    assert found == ["'optimizer.lr' takes float, found 'fast'"]


def test_a_misspelt_target_in_a_new_file(tmp_path):
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "mine.yaml").write_text("_targt_: mixer_lightning.losses.softmax_cross_entropy\n")
    (message,) = messages("loss=mine", folders=(CONF, tmp_path))
    assert message.startswith("'loss' has no '_target_': is '_targt_' a misspelling?")


def test_a_missing_required_parameter_in_a_new_file(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text(
        "_target_: mixer_lightning.models.convmixer.ConvMixer\ndim: 8\ndepth: 2\npatch_size: 1\n"
    )
    assert messages("model=mine", folders=(CONF, tmp_path)) == ["'model.kernel_size' is missing (int)"]


def test_exponents_without_a_point_are_numbers(tmp_path):
    jobs, wrong, _ = experiment(tmp_path, "optimizer: {lr: 1e-3}")
    assert wrong == []
    assert jobs[0].recipe.optimizer["lr"] == 0.001


def test_an_experiment_may_give_steps_in_place_of_epochs(tmp_path):
    jobs, wrong, _ = experiment(tmp_path, "duration: {epochs: null, steps: 7}")
    assert wrong == []
    assert jobs[0].recipe.duration == Duration(steps=7)
    (message,) = experiment(tmp_path, "duration: {steps: 7}").messages
    assert "duration: {epochs: null, steps: 1000}" in message  # what would mend it


def test_an_unknown_group_in_a_files_defaults_is_said_with_its_name(tmp_path):
    (message,) = experiment(tmp_path, "defaults:\n  - override /modle: mixer_s16").messages
    assert "modle" in message
    assert "experiment/mine" in message


def test_an_unknown_choice_in_a_files_defaults_is_said_with_its_name(tmp_path):
    (message,) = experiment(tmp_path, "defaults:\n  - override /model: mixer_s1").messages
    assert "'mixer_s1': did you mean 'mixer_s" in message
    assert "experiment/mine" in message


@pytest.mark.parametrize("text", ["seed: [1", "seed: 1\nseed: 2", "optimizer: {lr: ???}"])
def test_a_file_that_is_no_yaml_is_refused_by_name(tmp_path, text):
    (message,) = experiment(tmp_path, text).messages
    assert "experiment/mine.yaml" in message


def test_a_file_without_its_package_line(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("seed: 1\n")
    (message,) = messages("experiment=mine", folders=(CONF, tmp_path))
    assert "mine.yaml" in message
    assert "@package _global_" in message


# ------------------------------------------------------------------------------------ what may be written


@pytest.mark.parametrize(
    ("overrides", "duration"),
    [
        (["duration.steps=7"], {"steps": 7}),
        (["duration.epochs=2.5"], {"epochs": 2.5}),
        (["data=imagenet1k", "duration.steps=7"], {"steps": 7}),
        (["experiment=mixer_l16_imagenet21k", "duration.steps=7"], {"steps": 7}),
    ],
)
def test_a_duration_of_the_command_line_replaces_the_files(overrides, duration):
    recipe = compose_one("train", overrides)
    assert recipe.to_dict()["duration"] == duration


def test_epochs_of_the_command_line_replace_the_steps_of_a_file():
    recipe = compose_one("train", ["data=shards", "checkpoint_every.epochs=2", "eval_every.steps=5"])
    assert recipe.checkpoint_every == Duration(epochs=2)
    assert recipe.eval_every == Duration(steps=5)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("trainer.decode_threads=1", 1),
        ("trainer.deterministic=true", True),
        ("evals.accuracy.splits=[test]", ["test"]),
        ("data.root=/some/birds of mine", "/some/birds of mine"),
        ("logger.wandb.init_timeout_seconds=5", 5),
    ],
)
def test_parameters_that_stand_in_no_file_may_be_given(override, value):
    choices = {"data": ["data=pets"], "logg": ["logger=wandb"]}.get(override[:4], [])
    node: Any = compose_one("train", [*choices, override]).to_dict()
    for key in override.partition("=")[0].split("."):
        node = node[key]
    assert node == value


@pytest.mark.parametrize(
    "path",
    [
        "~/birds",
        "runs/grid/mixer_s16-pets-seed0-optimizer.lr=0.1/best.ckpt",
        "/some/birds (mine)",
        "/fotos/züge,1",
    ],
)
def test_paths_are_taken_as_they_are_typed(path):
    recipe = compose_one("train", ["data=folder", f"data.root={path}", f"checkpoint={path}"])
    assert Path(recipe.data["root"]).expanduser() == Path(path).expanduser()
    assert Path(recipe.checkpoint).expanduser() == Path(path).expanduser()


@pytest.mark.parametrize("group", ["model", "logger", "optimizer"])
def test_null_for_a_part_is_refused(group):
    assert group in refused(f"{group}=null")


def test_a_sweep_is_every_combination_in_a_directory_of_its_own():
    found = compose("train", ["optimizer.lr=0.1,0.2", "seed=0,1", "name=grid"], multirun=True)
    assert found.messages == []
    settings = {(job.recipe.optimizer["lr"], job.recipe.seed) for job in found.jobs}
    assert settings == {(0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1)}
    assert len({job.run_dir for job in found.jobs}) == 4
    assert {job.run_dir.parent for job in found.jobs} == {Path("runs/grid")}
    names = {job.run_dir.name for job in found.jobs}
    assert "convmixer_96_4-digits-seed1-optimizer.lr=0.2" in names


def test_a_sweep_over_choices():
    jobs = compose("train", ["model=mixer_digits,convmixer_96_4", "optimizer=adam,sgd"], multirun=True).jobs
    assert {(job.recipe.choices["model"], job.recipe.choices["optimizer"]) for job in jobs} == {
        (model, optimizer) for model in ("mixer_digits", "convmixer_96_4") for optimizer in ("adam", "sgd")
    }
    assert len({job.run_dir for job in jobs}) == 4


def test_a_sweep_by_range():
    jobs = compose("train", ["seed=range(3)"], multirun=True).jobs
    assert [job.recipe.seed for job in jobs] == [0, 1, 2]


def test_a_sweep_by_glob():
    jobs = compose("train", ["schedule=glob(*a*)"], multirun=True).jobs
    assert [job.recipe.choices["schedule"] for job in jobs] == ["constant", "linear", "triangular"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=0.1,fast,0.2", "'optimizer.lr' takes float, found 'fast'"),
        ("optimizer=adam,adamx", "unknown optimizer 'adamx': did you mean 'adam"),
        ("batch_size=64,0", "'batch_size' must be at least 1, found 0"),
    ],
)
def test_one_wrong_value_of_a_sweep_stops_it_all(override, message):
    found = compose("train", [override, "seed=0,1"], multirun=True)
    assert found.jobs == []
    (said,) = found.messages
    assert message in said


def test_the_run_directory_is_a_function_of_the_recipe():
    (job,) = compose("train", ["model=mixer_digits", "seed=3", "name=mine"]).jobs
    assert job.run_dir == Path("runs/mine/mixer_digits-digits-seed3")


def test_the_task_of_a_data_set_is_in_the_name_of_the_run_directory(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "vtab.yaml").write_text(f"_target_: {__name__}.many_tasks\ntask: pets\n")
    folders = (CONF, tmp_path)
    (job,) = compose("train", ["model=mixer_digits", "data=vtab"], folders=folders).jobs
    assert job.run_dir == Path("runs/default/mixer_digits-vtab_pets-seed0")
    words = ["model=mixer_digits", "data=vtab", "data.task=pets,dtd", "optimizer.lr=0.1,0.2"]
    jobs = compose("train", words, multirun=True, folders=folders).jobs
    assert {job.run_dir.name for job in jobs} == {
        f"mixer_digits-vtab_{task}-seed0-optimizer.lr={lr}" for task in ("pets", "dtd") for lr in (0.1, 0.2)
    }
    assert {job.run_dir.parent for job in jobs} == {Path("runs/default")}


def many_tasks(task: str) -> None:
    """A data set with tasks, as far as a recipe looks."""


def test_a_data_set_of_ones_own_trains_on_the_numbers_of_train_yaml(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "birds.yaml").write_text(
        "_target_: mixer_lightning.data.sources.folder.folder\nroot: birds\nname: birds\n"
    )
    (job,) = compose("train", ["data=birds"], folders=(CONF, tmp_path)).jobs
    assert (job.recipe.image_size, job.recipe.batch_size) == (224, 128)
    assert job.recipe.duration == Duration(epochs=100)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "birds.yaml").write_text("# @package _global_\nimage_size: 96\n")
    (job,) = compose("train", ["data=birds"], folders=(CONF, tmp_path)).jobs
    assert (job.recipe.image_size, job.recipe.choices["scratch"]) == (96, "birds")
    (tmp_path / "scratch" / "birds.yaml").write_text("image_size: 96\n")
    (message,) = compose("train", ["data=birds"], folders=(CONF, tmp_path)).messages
    assert "@package _global_" in message
    assert "birds.yaml" in message


@pytest.mark.parametrize("data", ["digits", "cifar10", "imagenet21k", "flowers"])
def test_fine_tuning_and_evaluation_get_no_numbers_for_training_from_scratch(data):
    for program in ("finetune", "evaluate"):
        recipe = compose_one(program, [f"data={data}"])
        assert (recipe.image_size, recipe.device_batch) == (224, 64)
        assert recipe.augment["eval_crop"] == 0.875
        assert "scratch" not in recipe.choices


# ------------------------------------------------------------------------------------------- the programs


def test_an_evaluation_reads_what_it_needs_and_no_more():
    recipe = compose_one("evaluate", ["data=digits"])
    assert {*recipe.to_dict()} == {
        *("name", "seed", "checkpoint", "image_size", "device_batch", "model", "data", "augment", "evals"),
        *("trainer", "train_split", "val_split", "test_split", "choices"),
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer=sgd", "unknown key 'optimizer'"),
        ("optimizer.lr=0.1", "unknown key 'optimizer'"),
        ("batch_size=32", "unknown key 'batch_size'"),
        ("experiment=mixer_digits", "unknown key 'experiment'"),
        ("logger=wandb", "unknown key 'logger'"),
        ("model.stochastic_depth=0.1", "'model.stochastic_depth' comes from the run: it is not yours to set"),
        ("model.image_size=8", "'model.image_size' comes from the run: set 'image_size' at the root instead"),
        ("~seed", "'seed' is missing (int)"),
    ],
)
def test_what_an_evaluation_does_not_read_is_refused(override, message):
    (said,) = compose("evaluate", ["data=digits", override]).messages
    assert said.startswith(message)


@pytest.mark.parametrize("program", ["train", "finetune"])
def test_a_callback_is_any_of_lightnings(tmp_path, program):
    assert compose_one(program).callbacks == {}
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks" / "timer.yaml").write_text(
        "# @package callbacks.timer\n_target_: lightning.pytorch.callbacks.Timer\nverbose: false\n"
    )
    folders = (CONF, tmp_path)
    (job,) = compose(program, ["callbacks=[model_summary,timer]"], folders=folders).jobs
    assert list(job.recipe.callbacks) == ["model_summary", "timer"]
    for node in job.recipe.callbacks.values():
        build(node)
    (message,) = compose(program, ["callbacks=timer", "callbacks.timer.durtion=1"], folders=folders).messages
    assert message == "unknown key 'callbacks.timer.durtion': did you mean 'callbacks.timer.duration'?"


def test_a_recipe_stored_before_there_were_callbacks_is_the_same():
    now = compose_one("train").to_dict()
    before = {key: value for key, value in now.items() if key != "callbacks"}
    assert differing_keys(before, now, ignore=FREE_KEYS) == []
    assert differing_keys(
        before, compose_one("train", ["callbacks=model_summary"]).to_dict(), ignore=FREE_KEYS
    )


def test_a_duration_in_steps():
    assert Duration(steps=7).to_steps(100.0) == 7
    assert Duration(epochs=2.5).to_steps(100.0) == 250
    assert Duration(epochs=20).to_steps(1437 / 64) == 449  # 449.06
    assert Duration(epochs=0.001).to_steps(10.0) == 1  # never none


def test_a_recipe_becomes_yaml_and_comes_back():
    recipe = compose_one("train", ["model=mixer_digits", "duration.steps=7", "logger=wandb"])
    stored = yaml.safe_load(recipe.to_yaml())
    assert stored == recipe.to_dict()
    assert load_recipe(Recipe, stored) == recipe
    del stored["choices"]
    assert check(stored, Recipe) == []


# ------------------------------------------------------------------------------------------- the machinery


def targets() -> list[str]:
    found = set()
    for path in CONF.rglob("*.yaml"):
        found |= {
            line.partition(":")[2].split("#")[0].strip()
            for line in path.read_text().splitlines()
            if line.strip().startswith("_target_:")
        }
    return sorted(found)


def test_the_targets_are_found():
    assert len(targets()) > 20
    elsewhere = [target for target in targets() if not target.startswith("mixer_lightning.")]
    assert elsewhere == ["lightning.pytorch.callbacks.rich_model_summary.RichModelSummary"]


@pytest.mark.parametrize("target", [t for t in targets() if t.startswith("mixer_lightning.")])
def test_a_signature_read_from_source_is_the_real_one(target):
    module, _, name = target.rpartition(".")
    real = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    assert signature(target) == {
        key: (ast.unparse(ast.parse(p.annotation)), p.default is p.empty) for key, p in real.items()
    }
    assert list(signature(target)) == list(real)
    kinds = {p.kind for p in real.values()}
    assert kinds <= {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}  # no **kwargs


def test_a_signature_of_a_name_that_is_imported_from_elsewhere():
    found = signature("mixer_lightning.create_model")
    assert found["num_classes"] == ("int", False)
    assert found["name"] == ("str", True)


@pytest.mark.parametrize(
    ("annotation", "yes", "no"),
    [
        ("int", [0, -3, 10**20], [True, 1.0, "1", None, [1], {}]),
        ("float", [0, 1.5, -2, 1e30], [True, "1e-3", None, [1.0]]),
        ("bool", [True, False], [0, 1, "true", None]),
        ("str", ["", "a", "1"], [1, None, ["a"], True]),
        ("None", [None], [0, "", False, []]),
        ("int | None", [3, None], [3.5, "", False]),
        ("float | str | None", [3, "x", None, 0.5], [True, [1]]),
        ("Literal['gelu', 'relu']", ["gelu", "relu"], ["GELU", "", None, 1]),
        ("Literal[1] | None", [1, None], [2, "1"]),
        ("typing.Literal['a']", ["a"], ["b"]),
        ("list[float]", [[], [1, 2.5]], [1, "ab", [1, "a"], [None], [True], {}]),
        ("list[str] | None", [None, ["a"]], ["a", [1]]),
        ("tuple[float, float]", [[1, 2.5]], [[1], [1, 2, 3], ["a", 1], 1]),
        ("tuple[int, ...]", [[], [1], [1, 2, 3]], [[1.5], 1, ["a"]]),
        ("dict[str, Any]", [{}, {"a": 1}], [1, [], "a"]),
        ("Duration", [{"epochs": 1}], [3, "3 epochs", None]),
        ("", [1, "a", None], []),
        ("Callable[[int], float]", [1, "a"], []),  # no YAML file can write one
    ],
)
def test_fits(annotation, yes, no):
    assert [value for value in yes if not fits(annotation, value)] == []
    assert [value for value in no if fits(annotation, value)] == []


def test_a_literal_is_of_its_type():
    assert not fits("Literal[1]", True)
    assert not fits("Literal[1]", 1.0)


LEAVES: dict[str, st.SearchStrategy[Any]] = {
    "int": st.integers(),
    "float": st.floats(allow_nan=False, allow_infinity=False) | st.integers(),
    "str": st.text(max_size=5),
    "bool": st.booleans(),
    "None": st.none(),
    "Literal['a', 'b', 3]": st.sampled_from(["a", "b", 3]),
}
leaf = st.sampled_from(list(LEAVES.items()))


def larger(
    inner: st.SearchStrategy[tuple[str, st.SearchStrategy[Any]]],
) -> st.SearchStrategy[tuple[str, st.SearchStrategy[Any]]]:
    union = st.tuples(inner, inner).map(lambda two: (f"{two[0][0]} | {two[1][0]}", two[0][1] | two[1][1]))
    many = inner.map(lambda one: (f"list[{one[0]}]", st.lists(one[1], max_size=3)))
    pair = st.tuples(inner, inner).map(
        lambda two: (f"tuple[{two[0][0]}, {two[1][0]}]", st.tuples(two[0][1], two[1][1]).map(list))
    )
    return union | many | pair


@given(st.data(), st.recursive(leaf, larger, max_leaves=5))
@settings(max_examples=200, deadline=None)
def test_a_value_made_for_an_annotation_fits_it(data, kind):
    annotation, values = kind
    value = data.draw(values)
    assert fits(annotation, value)
    assert not fits(annotation, {"a": value})  # none of them is a mapping
    assert not fits(f"list[{annotation}]", {"a": value})
    assert fits(f"list[{annotation}]", [value, value])
    assert not fits(f"tuple[{annotation}, {annotation}]", [value])


@given(st.sampled_from(["int", "float", "str", "bool", "None"]), st.data())
def test_kinds_do_not_mix(annotation, data):
    other = data.draw(st.sampled_from(["int", "float", "str", "bool", "None"]))
    value = data.draw(LEAVES[other])
    exact = {"int": int, "float": float, "str": str, "bool": bool, "None": type(None)}[annotation]
    assert fits(annotation, value) == (type(value) is exact or (annotation == "float" and type(value) is int))


def test_groups_are_the_folders_of_conf():
    found = groups()
    assert set(found) == {path.name for path in CONF.iterdir() if path.is_dir()} - {"hydra", "suite"}
    for group, choices in found.items():
        assert set(choices) == {path.stem for path in (CONF / group).glob("*.yaml")}


def test_building_calls_the_target_with_parameters_and_facts():
    node = {"_target_": "textwrap.shorten", "placeholder": "~"}
    assert build(node, text="one two three", width=8) == "one two~"
    partial = build({**node, "_partial_": True}, width=8)
    assert partial("one two three") == "one two~"
    assert node == {"_target_": "textwrap.shorten", "placeholder": "~"}


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


def test_recipes_are_checked_without_torch():
    done = python(
        "import sys; from mixer_lightning.config.compose import compose\n"
        "good = compose('train', ['experiment=mixer_l16_imagenet21k', 'logger=wandb', 'optimizer=lamb'])\n"
        "assert good.messages == [], good\n"
        "bad = compose('train', ['optimizer.lrr=2', 'loss.x=1', 'model._target_=no.such', 'trainer.y=1'])\n"
        "assert len(bad.messages) == 4, bad\n"
        "assert not {'torch', 'lightning', 'wandb', 'timm', 'numpy'} & sys.modules.keys()"
    )
    assert done.returncode == 0, done.stderr


def test_a_misspelt_target_is_refused_without_torch():
    done = python(
        "import sys; from mixer_lightning.config.compose import compose\n"
        "bad = compose('train', ['model._target_=mixer_lightning.models.mixer.Mixr'])\n"
        "assert len(bad.messages) == 1, bad\n"
        "assert 'torch' not in sys.modules"
    )
    assert done.returncode == 0, done.stderr


def test_a_misspelt_target_has_a_suggestion():
    assert "mixer_lightning.models.mixer.Mixer" in refused("model._target_=mixer_lightning.models.mixer.Mixr")
