"""`mixer <command>`: every command answers at once, and a mistyped one with what was meant."""

from __future__ import annotations

import subprocess
import sys

import pytest

import mixer_lightning
from conftest import ROOT
from mixer_lightning.cli.console import COMMANDS
from mixer_lightning.cli.console import main as mixer
from mixer_lightning.cli.study import STUDIES

HEAVY = {"torch", "torchvision", "lightning", "pytorch_lightning", "timm", "wandb", "matplotlib", "scipy"}


def imported_by(*argv: str) -> tuple[int, str, set[str]]:
    """Exit code, output and imported packages of `python -m mixer_lightning <argv>`."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "mixer_lightning", *argv],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    lines = done.stderr.splitlines()
    names = {line.rpartition("|")[2].strip().split(".")[0] for line in lines if "import time" in line}
    return done.returncode, done.stdout, names


@pytest.mark.parametrize("command", [*COMMANDS, *(f"study {name}" for name in STUDIES)])
def test_help_of_every_command_comes_without_torch(command):
    code, said, names = imported_by(*command.split(), "--help")
    assert code == 0
    assert len(said.splitlines()) > 3
    assert "mixer_lightning" in names
    assert not names & HEAVY


@pytest.mark.parametrize("study", STUDIES)
def test_a_typo_in_a_study_is_answered_without_torch(study):
    code, said, names = imported_by("study", study, "roundz=3")
    assert (code, said) == (2, "")
    assert not names & HEAVY


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_usage_lists_every_command(argv, capsys):
    assert mixer(argv) == 0
    said = capsys.readouterr().out
    for command, about in COMMANDS.items():
        assert f"  {command} " in said
        assert about in said


@pytest.mark.parametrize("argv", [["study"], ["study", "--help"]])
def test_usage_lists_every_study(argv, capsys):
    assert mixer(argv) == 0
    said = capsys.readouterr().out
    assert all(f"  {study} " in said for study in STUDIES)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "unknown command 'trian': did you mean 'train'?"),
        (["evalute", "checkpoint=x"], "unknown command 'evalute': did you mean 'evaluate'?"),
        (["study", "laoder"], "unknown study 'laoder': did you mean 'loader'?"),
        (["study", "cifar", "roots=x"], "unknown key 'roots': did you mean 'root'?"),
        (["predict", "image=x"], "unknown key 'image': did you mean 'images'?"),
    ],
)
def test_a_mistyped_name_ends_with_2(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        mixer(argv)
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.out == ""


def test_version(capsys):
    assert mixer(["--version"]) == 0
    assert capsys.readouterr().out == f"mixer-lightning {mixer_lightning.__version__}\n"
