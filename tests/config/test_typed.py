"""What a user types, and what becomes of it: texts like numbers, patterns, empty values, other programs' keys."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from mixer_lightning.cli.program import help_text, program
from mixer_lightning.config.compose import ROOTS, compose, compose_one
from mixer_lightning.config.elsewhere import ELSEWHERE
from mixer_lightning.config.groups import groups_of


@pytest.mark.parametrize("text", ["20241103", "12e4567", "1_000", "true", "0x1f", "1e5", "nan", "-3", "007"])
def test_text_is_text_where_text_is_taken(text: str) -> None:
    recipe = compose_one("train", ["data=folder", f"name={text}", f"data.root={text}", f"checkpoint={text}"])
    assert (recipe.name, recipe.checkpoint) == (text, text)
    assert recipe.data["root"] == str(Path(text).absolute())


def test_text_is_text_in_a_sweep_too() -> None:
    jobs = compose("train", ["name=1,12e4567,a"], multirun=True).jobs
    assert [job.recipe.name for job in jobs] == ["1", "12e4567", "a"]


def test_numbers_stay_numbers() -> None:
    recipe = compose_one("train", ["name=7", "seed=7", "optimizer.lr=1e-3"])
    assert (recipe.name, recipe.seed, recipe.optimizer["lr"]) == ("7", 7, 0.001)
    assert compose("train", ["name=null"]).messages == ["'name' takes str, found None"]
    assert compose("train", ["seed=x", "name=7"]).messages == ["'seed' takes int, found 'x'"]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("x-{000..099}.tar", "x-{000..099}.tar"),
        ("{a,b}-0.tar", "{a,b}-0.tar"),
        ("s3://b/x-{000..099}.tar", "s3://b/x-{000..099}.tar"),
        ("[~/a.tar,~/b c.tar]", ["HOME/a.tar", "HOME/b c.tar"]),
        ("[~/a-{000..002}.tar,~/b.tar]", ["HOME/a-{000..002}.tar", "HOME/b.tar"]),
        ("['~/a.tar',b.tar]", ["~/a.tar", "b.tar"]),  # quoted is as it is
    ],
)
def test_patterns_and_lists_of_files(typed: str, meant: str | list[str]) -> None:
    found = compose_one("train", ["data=shards", f"data.train={typed}"]).data["train"]
    home = str(Path.home())
    assert found == ([each.replace("HOME", home) for each in meant] if isinstance(meant, list) else meant)


@pytest.mark.parametrize(
    "override", ["hydra.run.dir=", "name=", "checkpoint=", "data.root=", "logger=", "name=''"]
)
def test_nothing_is_no_value(override: str) -> None:
    key = override.partition("=")[0]
    assert compose("train", [override]).messages == [f"'{key}=' is empty: give a value, or leave it out"]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("lr=0.1", "optimizer.lr=0.1"),
        ("epochs=3", "duration.epochs=3"),
        ("root=/birds", "data.root=/birds"),
        ("batch=32", "batch_size=32"),
        ("weight_decay=0.1", "optimizer.weight_decay=0.1"),
        ("num_workers=4", "trainer.decode_threads=4"),
        ("workers=0", "trainer.decode_threads=1"),
        ("mixup=0.2", "augment.mixup=0.2"),
    ],
)
def test_keys_of_other_programs_are_understood(typed: str, meant: str) -> None:
    key = typed.partition("=")[0]
    assert compose("train", [typed]).messages == [f"unknown key '{key}': did you mean '{meant}'?"]


def test_what_they_are_called_here_is_there() -> None:
    known = {*groups_of("train"), *(f.name for f in fields(ROOTS["train"])), "hydra"}
    assert {found.partition(".")[0] for found in ELSEWHERE.values()} <= known


def test_what_is_advised_for_them_is_taken() -> None:
    values = {
        "data": "folder",
        "optimizer": "adamw",
        "schedule": "cosine",
        "trainer": "cuda",
        "trainer.precision": "32-true",
        "checkpoint": "timm:mixer_b16_224.goog_in21k",
        "hydra.run.dir": "there",
        "ema_decay": "0.9",
        "stochastic_depth": "0.1",
        "loss.label_smoothing": "0.1",
    }
    typed = [f"{key}={values.get(meant, '2')}" for key, meant in ELSEWHERE.items()]
    messages = compose("train", typed).messages
    advised = {message.partition("did you mean '")[2].removesuffix("'?") for message in messages}
    assert len(messages) == len(ELSEWHERE)
    taken = [each for each in sorted(advised) if not each.startswith("duration.")]
    assert compose("train", ["loss=softmax", "duration.epochs=2", *taken]).messages == []


@pytest.mark.parametrize("typed", ["num_classes=3", "dropout=0.1"])
def test_what_few_choices_take_is_not_advised(typed: str) -> None:
    assert compose("train", [typed]).messages == [f"unknown key '{typed.partition('=')[0]}'"]


@pytest.mark.parametrize("typed", ["amp=true", "pretrained=True"])
def test_a_switch_of_other_programs_is_no_value_here(typed: str) -> None:
    key = typed.partition("=")[0]
    assert compose("train", [typed]).messages == [
        f"unknown key '{key}': did you mean '{ELSEWHERE[key]}=<...>'?"
    ]


def ended(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[object, str]:
    """Exit code and what was said of `mixer train` with these arguments, which start nothing."""
    try:
        code: object = program(
            "train", argv, run=lambda recipe, folder: 0, after_sweep=lambda runs, errors: 0
        )
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr()
    return code, said.out + said.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--batch-size", "32"], "unknown option '--batch-size': did you mean 'batch_size=32'?"),
        (["--batch-size=32"], "unknown option '--batch-size': did you mean 'batch_size=32'?"),
        (["--lr", "0.1"], "unknown option '--lr': did you mean 'optimizer.lr=0.1'?"),
        (["--optimizer.lr", "0.1"], "unknown option '--optimizer.lr': write optimizer.lr=0.1"),
        (["--optimizer.lr=-1"], "'optimizer.lr' must be above 0, found -1"),  # as W&B's agents write it
        (["--optimizer.lrr=1"], "unknown key 'optimizer.lrr': did you mean 'optimizer.lr'?"),
        (["--ckpt", "runs/lr=0.1"], "unknown option '--ckpt': did you mean 'checkpoint=runs/lr=0.1'?"),
        (["--resume"], "unknown option '--resume': the same command again goes on where a run was stopped"),
        (["--cfg"], "--cfg/-c: expected one argument"),
        (["-sc"], "Expecting one subcommand from ['install', 'uninstall', 'query'] to be set"),
        (["--mulirun"], "unknown option '--mulirun': did you mean '--multirun'?"),
    ],
)
def test_options_with_dashes(capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    code, said = ended(capsys, *argv)
    assert (code, said.strip()) == (2, message)


def test_the_version_is_this_projects(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = ended(capsys, "--version")
    assert code == 0
    assert said.startswith("mixer-lightning ")


@pytest.mark.parametrize("config_name", list(ROOTS))
def test_help_says_what_every_root_key_is(config_name: str) -> None:
    keys = help_text(config_name).partition("root keys")[2].splitlines()[1:]
    assert len(keys) >= 8
    assert [line for line in keys if len(line.split()) < 2] == []
