"""What the README says is there, and what it tells to type is accepted."""

from __future__ import annotations

import ast
import importlib
import math
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from conftest import ROOT
from mixer_lightning import results
from mixer_lightning.cli import dashboard, doctor, export, plan, predict, prepare, report, search, transfer
from mixer_lightning.cli.console import COMMANDS as COMMANDS_OF_THE_CONSOLE
from mixer_lightning.cli.console import main as mixer
from mixer_lightning.config.compose import compose
from mixer_lightning.config.groups import groups

README = (ROOT / "README.md").read_text()
CLUSTERS = (ROOT / "docs" / "clusters.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README + CLUSTERS, flags=re.DOTALL)
LINES = [
    line.split("  #")[0].strip()
    for language, text in BLOCKS
    if language == "bash"
    for line in text.splitlines()
    if line.strip()
]
INLINE = re.findall(r"`((?:torchrun|python|mixer) [^`]*=[^`]*)`", README)
COMMANDS = [*LINES, *INLINE]
LAYOUT = README.partition("## Layout\n\n```\n")[2].partition("```")[0]


SCRIPTS = ("docker/torchrun.sh", "docker/slurm.sh")  # they hand their arguments to train.py


def arguments(command: str) -> list[str]:
    """What stands behind the program's name; "..." and options of torchrun left out."""
    argv = shlex.split(command)
    programs = ("mixer", "mixer_lightning", "train.py", "finetune.py", *SCRIPTS)
    first = next(i for i, word in enumerate(argv) if word in programs)
    return [word for word in argv[first + 1 :] if word not in ("...", "experiment=...")]


TRAINING = [c for c in COMMANDS if "train.py" in c or any(script in c for script in SCRIPTS)]
WITH_A_RECIPE = [c for c in COMMANDS if re.match(r"python finetune.py|mixer (train|finetune|evaluate)\b", c)]
OTHERS = [
    c for c in COMMANDS if re.match(r"mixer |torchrun .*-m mixer_lightning ", c) and c not in WITH_A_RECIPE
]


def test_there_are_commands_to_check():
    assert len(TRAINING) >= 7
    assert len(WITH_A_RECIPE) >= 4
    assert {arguments(c)[0] for c in OTHERS} >= {
        "doctor",
        "predict",
        "export",
        "transfer",
        "prepare",
        "study",
    }
    assert {"make train", "make test"} <= set(LINES)


def run(recipe: object, run_dir: Path) -> int:
    raise AssertionError("it is composed and no more")


@pytest.mark.parametrize("command", TRAINING)
def test_training_commands_compose(command):
    flags = ("--help", "--cfg", "job", "--resolve")
    argv, _ = plan.choose("train", [word for word in arguments(command) if word not in flags], run)
    composition = compose("train", [word for word in argv if word != "-m"], multirun="-m" in argv)
    assert composition.messages == []
    values = [word.partition("=")[2] for word in argv]
    assert len(composition.jobs) == math.prod(value.count(",") + 1 for value in values if value[:1] != "[")


@pytest.mark.parametrize("command", [c for c in LINES if c.startswith("make")])
def test_make_targets_exist(command):
    done = subprocess.run(
        ["make", "-n", *command.split()[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_python_example_runs(tmp_path):
    (example,) = (text for language, text in BLOCKS if language == "python")
    from mixer_lightning.api import create_model
    from mixer_lightning.checkpoints.save import save_flax

    save_flax(create_model("mixer_b16", num_classes=1000), tmp_path / "Mixer-B_16.npz")
    import torch

    names: dict[str, object] = {"images": torch.zeros(1, 3, 224, 224)}
    run_dir = tmp_path / "run"  # a checkpoint of a run, as far as it matters here
    run_dir.mkdir()
    small = create_model("mixer_digits", num_classes=10)
    torch.save({f"model.{key}": value for key, value in small.state_dict().items()}, run_dir / "best.ckpt")
    example = example.replace("runs/finetune/mixer_b16-folder-seed0", str(run_dir))
    exec(example.replace("Mixer-B_16.npz", str(tmp_path / "Mixer-B_16.npz")), names)
    assert names["features"].shape == (1, 196, 768)  # type: ignore[attr-defined]


def test_files_and_folders_that_it_names_exist():
    for page, text in ((ROOT / "README.md", README), (ROOT / "docs" / "clusters.md", CLUSTERS)):
        for path in re.findall(r"\]\(((?!http|#)[^)]+)\)", text):
            assert (page.parent / path).exists(), path
    for path in re.findall(r"`((?:conf|docker|results|tests|mixer_lightning)/[\w./]*)`", README):
        assert (ROOT / path).exists(), path


def test_it_describes_every_file_of_a_run():
    for name in (
        results.RECIPE, results.METRICS, results.METRICS_CSV, results.RESULT, results.LAST, results.BEST,
        results.FIRST_BATCH, results.CURVES, results.LOG,
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


@pytest.mark.parametrize("command", WITH_A_RECIPE)
def test_commands_with_a_recipe_compose(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["mixer"])
    argv = arguments(command)
    program = [] if command.startswith("mixer") else ["finetune"]
    assert mixer([*program, *argv, "--cfg", "job"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    for argument in argv:
        key, _, value = argument.partition("=")
        if key in ("checkpoint", "image_size"):
            assert str(shown[key]) == value


@pytest.mark.parametrize("command", OTHERS)
def test_commands_without_a_recipe_parse(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, *argv = arguments(re.sub(r"<[^>]*>", str(tmp_path), command))
    parse = {
        "predict": predict.settings,
        "export": export.settings,
        "transfer": transfer.settings,
        "prepare": prepare.parse,
        "report": report.settings,
        "doctor": doctor.settings,
        "search": lambda words: search.settings(words[0], words[1:]),
        "dashboard": lambda words: dashboard.settings(words[0], words[1:]),
    }
    if name == "study":
        study, *argv = argv
        chosen = importlib.import_module(f"mixer_lightning.studies.{study}").settings(argv)
    else:
        chosen = parse[name](argv)
    for argument in argv:
        key, _, value = argument.partition("=")
        if key in ("checkpoint", "data", "root", "output", "to"):
            assert Path(value).name in repr(chosen), argument


def test_every_command_is_named():
    for command in COMMANDS_OF_THE_CONSOLE:
        assert f"`{command}`" in README, command


def test_the_layout_is_the_one_there_is():
    """Names in the left column, below those that their indentation says; and every room among them."""
    found: set[str] = set()
    above: list[str] = ["", "", ""]
    for line in LAYOUT.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        if depth > 2:
            continue  # more words for the line before
        for name in re.split(r" {2,}", line.strip())[0].split():
            path = f"{above[depth]}{name}"
            found.add(path.rstrip("/"))
            if name.endswith("/") and depth < 2:
                above[depth + 1] = path
    assert {path for path in found if not (ROOT / path).exists()} == set()
    package, conf = ROOT / "mixer_lightning", ROOT / "conf"
    there = {path for folder in (package, conf) for path in folder.iterdir() if path.name[0] not in "._"}
    assert {str(path.relative_to(ROOT)) for path in there} <= found


def test_the_table_of_models_is_the_one_that_the_command_prints(capsys):
    begin, end = "<!-- mixer models --markdown -->\n", "<!-- end -->"
    shown = README.partition(begin)[2].partition(end)[0].strip()
    assert mixer(["models", "--markdown"]) == 0
    assert shown == capsys.readouterr().out.strip(), (
        "paste what `mixer models --markdown` prints into README.md"
    )


def test_failures_are_in_the_words_of_the_program():
    """docs/failures.md quotes what is said; `...` stands for what a message fills in."""
    texts = "\n".join(
        node.value
        for path in (ROOT / "mixer_lightning").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    rows = [
        line for line in (ROOT / "docs" / "failures.md").read_text().splitlines() if line.startswith("| `")
    ]
    quoted = [re.findall(r"`([^`]+)`", row.split("|")[1])[0] for row in rows]
    assert len(quoted) > 25
    parts = [part for text in quoted for part in text.split("...")]
    assert [part for part in parts if part not in texts] == []
