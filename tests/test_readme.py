"""What the README says is there, and what it tells to type is accepted."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from conftest import ROOT
from mixer_lightning import results
from mixer_lightning.config.compose import compose
from mixer_lightning.config.groups import groups

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    line.split("  #")[0].strip()
    for language, text in BLOCKS
    if language == "bash"
    for line in text.splitlines()
    if line.strip()
]
INLINE = re.findall(r"`((?:torchrun|python) [^`]*)`", README)


def overrides(command: str) -> list[str]:
    words = shlex.split(command)
    return [w for w in words[words.index("train.py") + 1 :] if w[0] != "-" and w != "job" and "..." not in w]


TRAINING = [c for c in [*COMMANDS, *INLINE] if "train.py" in c]


def test_there_are_commands_to_check():
    assert len(TRAINING) >= 7
    assert {"make train", "make test"} <= set(COMMANDS)


@pytest.mark.parametrize("command", TRAINING)
def test_training_commands_compose(command):
    words = shlex.split(command)
    composition = compose("train", overrides(command), multirun="-m" in words)
    assert composition.messages == []
    assert len(composition.jobs) == (12 if "-m" in words else 1)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make")])
def test_make_targets_exist(command):
    done = subprocess.run(
        ["make", "-n", *command.split()[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_python_example_runs(tmp_path):
    (example,) = (text for language, text in BLOCKS if language == "python")
    from mixer_lightning.api import create_model
    from mixer_lightning.checkpoints.load import save_flax

    save_flax(create_model("mixer_b16", num_classes=1000), tmp_path / "Mixer-B_16.npz")
    import torch

    names: dict[str, object] = {"images": torch.zeros(1, 3, 224, 224)}
    exec(example.replace("Mixer-B_16.npz", str(tmp_path / "Mixer-B_16.npz")), names)
    assert names["features"].shape == (1, 196, 768)  # type: ignore[attr-defined]


def test_files_and_folders_that_it_names_exist():
    for path in re.findall(r"\]\(((?!http|#)[^)]+)\)", README):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"`((?:conf|docker|results|mixer_lightning)/[\w./]*)`", README):
        assert (ROOT / path).exists(), path


def test_it_describes_every_file_of_a_run():
    for name in (
        results.RECIPE, results.METRICS, results.METRICS_CSV, results.RESULT, results.LAST, results.BEST,
        results.CURVES, results.LOG,
    ):  # fmt: skip
        assert f"`{name}`" in README


@pytest.mark.parametrize("group", ["trainer", "data"])
def test_it_lists_every_choice(group):
    for choice in groups()[group]:
        assert f"`{choice}`" in README, choice


def test_no_trace_of_a_machine():
    for path in subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split():
        if Path(path).suffix in (".py", ".md", ".yaml", ".toml", ".txt", ".sh"):
            text = (ROOT / path).read_text()
            assert not re.search(r"/(work|home|root)/[a-z]", text), path


@pytest.mark.parametrize("command", [c for c in [*COMMANDS, *INLINE] if "finetune.py" in c])
def test_fine_tuning_commands_compose(command):
    words = shlex.split(command)
    given = words[words.index("finetune.py") + 1 :]
    composition = compose("finetune", given)
    assert composition.messages == []


@pytest.mark.parametrize("command", [c for c in COMMANDS if "-m mixer_lightning." in c])
def test_programs_exist(command):
    name = re.search(r"-m mixer_lightning\.([\w.]+)", command)[1]  # type: ignore[index]
    path = ROOT / "mixer_lightning" / name.replace(".", "/")
    assert path.with_suffix(".py").exists() or (path / "__main__.py").exists()
