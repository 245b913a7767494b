"""A command line becomes jobs: what may be written, sweeps, run directories, and the recipe of each program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mixer_lightning.config.compose import compose, compose_one
from mixer_lightning.config.groups import groups
from mixer_lightning.config.recipe import FREE_KEYS, Duration
from mixer_lightning.files import CONF
from mixer_lightning.results import differing_keys
from mixer_lightning.targets import build

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
    assert Path(recipe.data["root"]).expanduser() == Path(path).expanduser().absolute()
    assert Path(recipe.checkpoint).expanduser() == Path(path).expanduser()


@pytest.mark.parametrize("group", ["model", "logger", "optimizer"])
def test_null_for_a_part_is_refused(group):
    (message,) = compose("train", [f"{group}=null"]).messages
    assert group in message


def test_a_key_of_a_file_that_the_chosen_part_does_not_take_is_refused_with_the_way_out():
    given = ["data=cifar10", "schedule=constant"]
    (message,) = compose("finetune", given).messages
    assert message == (
        "unknown key 'schedule.warmup_steps'  (in conf/transfer/cifar10.yaml): leave it out with "
        "'~schedule.warmup_steps'"
    )
    assert compose("finetune", [*given, "~schedule.warmup_steps"]).messages == []


@pytest.mark.parametrize(
    ("place", "multirun", "instead"),
    [
        ("hydra.run.dir=foo", True, "hydra.sweep.dir=<folder of all>"),
        ("hydra.sweep.dir=foo", False, "hydra.run.dir=<folder>"),
        ("hydra.sweep.subdir=foo", False, "hydra.run.dir=<folder>"),
    ],
)
def test_a_place_that_would_be_ignored_is_refused(place, multirun, instead):
    (message,) = compose("train", [place, "seed=0,1" if multirun else "seed=0"], multirun=multirun).messages
    assert message.endswith(f"it is {instead}")


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


def test_a_sweep_over_lists_of_choices():
    found = compose("train", ["evals=[accuracy],[accuracy,macro],none"], multirun=True)
    assert [job.varied for job in found.jobs] == [
        {"evals": names} for names in ("accuracy", "accuracy+macro", "none")
    ]
    assert [job.run_dir.name.partition("-evals=")[2] for job in found.jobs] == [
        "accuracy",
        "accuracy+macro",
        "none",
    ]
    (message,) = compose("train", ["evals=[accuracy],[accuracy,makro]"], multirun=True).messages
    assert message == "unknown evals 'makro': did you mean 'macro'?"


def test_a_sweep_by_range():
    jobs = compose("train", ["seed=range(3)"], multirun=True).jobs
    assert [job.recipe.seed for job in jobs] == [0, 1, 2]


def test_a_sweep_by_glob():
    jobs = compose("train", ["schedule=glob(*a*)"], multirun=True).jobs
    schedules = sorted(path.stem for path in (CONF / "schedule").glob("*a*.yaml"))
    assert [job.recipe.choices["schedule"] for job in jobs] == schedules


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


def test_the_task_of_a_data_set_is_in_the_name_of_the_run_directory():
    given = ["model=mixer_digits", "data=vtab"]
    (job,) = compose("train", [*given, "data.task=pets"]).jobs
    assert job.run_dir == Path("runs/default/mixer_digits-vtab_pets-seed0")
    jobs = compose("train", [*given, "data.task=pets,dtd", "optimizer.lr=0.1,0.2"], multirun=True).jobs
    names = {
        f"mixer_digits-vtab_{task}-seed0-optimizer.lr={lr}" for task in ("pets", "dtd") for lr in (0.1, 0.2)
    }
    assert {job.run_dir for job in jobs} == {Path("runs/default") / name for name in names}


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


def test_a_group_of_which_no_file_is_taken_says_what_to_take():
    assert compose("train", ["logger=[]"]).messages == [
        "'logger' is missing: logger=none is without any, logger=<name> with one"
    ]
    assert "'model' is missing: choose one, model=<name>" in compose("train", ["model=[]"]).messages


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


def test_groups_are_the_folders_of_conf():
    found = groups()
    assert set(found) == {path.name for path in CONF.iterdir() if path.is_dir()} - {"hydra", "suite"}
    for group, choices in found.items():
        assert set(choices) == {path.stem for path in (CONF / group).glob("*.yaml")}


def test_no_file_of_a_group_that_sets_root_keys():
    assert compose_one("train", ["experiment=null"]).choices == compose_one("train").choices
    without = compose_one("train", ["model=convmixer_768_32", "scratch=null"])
    assert (without.image_size, without.batch_size) == (224, 128)  # those of conf/train.yaml, not of digits
    assert "scratch" not in without.choices
    finetune = compose_one("finetune", ["data=cifar10", "transfer=null"])
    assert finetune.duration.steps == 500  # of conf/finetune.yaml: conf/transfer/cifar10.yaml says 10,000
    assert "transfer" not in finetune.choices
