"""A wrong recipe is refused, whatever is wrong with it and wherever it stands, before anything heavy is imported."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mixer_lightning.cli.program import help_text
from mixer_lightning.config.check import check
from mixer_lightning.config.compose import Composition, compose, compose_one
from mixer_lightning.config.recipe import Duration, Recipe
from mixer_lightning.files import CONF


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
        (
            "schedule=zzz",
            "unknown schedule 'zzz'. There are: constant, cosine, cosine_by_epoch, linear, transfer, triangular",
        ),
        ("digits", "'digits' is not of the form key=value"),
        ("optimizer.lr=0.1,0.2", "optimizer.lr=0.1,0.2 names several values: add -m"),
        (
            "evals=accuracy,macro",
            "names several values: all in one run are 'evals=[accuracy,macro]'; a sweep",
        ),
        ("trainer=cuda", "unknown trainer 'cuda': did you mean 'gpu'?"),
        ("optimizer=adamW", "unknown optimizer 'adamW': did you mean 'adamw'?"),
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
        ("trainer.compile=1", "'trainer.compile' takes bool, found 1"),
        (
            "trainer.precision=bf17",
            "'trainer.precision' takes one of auto, 32-true, bf16-mixed, 16-mixed, found 'bf17'",
        ),
        ("name=[3]", "'name' takes str, found [3]"),
        ("checkpoint=[3]", "'checkpoint' takes str | None, found [3]"),
        ("duration=3", "'duration' takes duration.epochs=<...> or duration.steps=<...>, found 3"),
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
        ("clip_grad_norm=0", "'clip_grad_norm' must be above 0, found 0"),
        ("duration.epochs=0", "'duration.epochs' must be above 0, found 0"),
        ("duration.steps=-3", "'duration.steps' must be at least 1, found -3"),
        ("eval_every.steps=0", "'eval_every.steps' must be at least 1, found 0"),
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
    assert "(in " not in message  # no file's fault
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
        ("duration: {epochs: -1}", "'duration.epochs' must be above 0"),
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


@pytest.mark.parametrize(
    ("text", "file"),
    [("seed: 1\n", "mine.yaml"), ("# nothing\n", ""), ("defaults: [override /model: mixer_s16]\n", "")],
)
def test_a_file_without_its_package_line(tmp_path, text, file):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    (message,) = messages("experiment=mine", folders=(CONF, tmp_path))
    assert message.startswith("the file of experiment lacks its first line, # @package _global_")
    assert file in message


def test_a_file_in_another_encoding_is_named(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_bytes("# Müllers\n_target_: x\n".encode("latin-1"))
    (message,) = messages("model=mine", folders=(CONF, tmp_path))
    assert message.startswith("not text in UTF-8: ")
    assert message.endswith("model/mine.yaml")
    assert "mine " in help_text("train", (CONF, tmp_path))


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
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
