"""The commands as a user types them: what they print, how fast they answer, how they exit."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import yaml

from conftest import ROOT, TINY
from mixer_lightning.cli import console
from mixer_lightning.config.compose import compose_one
from mixer_lightning.config.groups import groups


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["modle=mixer_s16"], "unknown key 'modle': did you mean 'model'?"),
        (["model=mixer_s", "optimizer.lrr=1"], "unknown key 'optimizer.lrr': did you mean 'optimizer.lr'?"),
        (["optimizer.lr=0.1,0.2"], "add -m (--multirun) for a sweep"),
        (["-m", "optimizer.lr=0.1,fast"], "'optimizer.lr' takes float, found 'fast'"),
        (["batch_size=0"], "'batch_size' must be at least 1"),
        (["digits"], "'digits' is not of the form key=value"),
        (["--no-such-flag"], "unknown option '--no-such-flag'"),
    ],
)
def test_a_slip_of_the_finger(program, tmp_path, words, message):
    done = program("train.py", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []  # nothing was changed


def test_a_slip_in_a_file_names_the_file(program, tmp_path):
    (tmp_path / "my" / "experiment").mkdir(parents=True)
    (tmp_path / "my" / "experiment" / "birds.yaml").write_text(
        "# @package _global_\noptimizer: {lrr: 0.1}\nsede: 3\n"
    )
    done = program("train.py", "--config-dir=my", "experiment=birds")
    assert done.returncode == 2
    assert sorted(done.stderr.splitlines()) == [
        "unknown key 'optimizer.lrr': did you mean 'optimizer.lr'?  (in my/experiment/birds.yaml)",
        "unknown key 'sede': did you mean 'seed'?  (in my/experiment/birds.yaml)",
    ]


def test_a_file_of_ones_own_is_used(program, tmp_path):
    (tmp_path / "my" / "experiment").mkdir(parents=True)
    (tmp_path / "my" / "experiment" / "birds.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: mixer_s16\nname: birds\noptimizer: {lr: 5e-4}\n"
    )
    done = program("train.py", "--config-dir=my", "experiment=birds", "--cfg", "job", "--resolve")
    assert done.returncode == 0, done.stderr
    shown = yaml.safe_load(done.stdout)
    assert (shown["name"], shown["optimizer"]["lr"], shown["model"]["hidden_dim"]) == ("birds", 5e-4, 512)


def test_the_answer_does_not_wait_for_torch(tmp_path):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "train.py"), "modle=mixer_s16", "optimizer.lrr=3"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "import time" in line}
    assert "mixer_lightning.config.compose" in imported
    assert not {"torch", "lightning", "numpy", "timm", "wandb"} & {name.split(".")[0] for name in imported}


def test_one_process_of_many_speaks(program):
    assert "modle" in program("train.py", "modle=x", RANK="0", WORLD_SIZE="2").stderr
    second = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for env in (second, {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_STEP_ID": "0"}):
        done = program("train.py", "modle=x", **env)
        assert done.returncode == 2
        assert done.stderr == ""


@pytest.mark.parametrize(("script", "absent"), [("train.py", "transfer"), ("finetune.py", "scratch")])
def test_help_lists_every_choice_with_what_it_is(program, script, absent):
    done = program(script, "--help")
    assert done.returncode == 0
    assert f"\n{absent}=" not in done.stdout
    for group, choices in groups().items():
        if group == absent:
            continue
        part = re.search(rf"^{group}=\n((?:  .*\n)+)", done.stdout, re.MULTILINE)
        assert part, group
        told = dict(line.split(None, 1) for line in part[1].splitlines())
        assert set(told) == set(choices)
        assert all(len(words) > 10 for words in told.values())
    for key in ("seed", "batch_size", "device_batch", "duration", "ema_decay", "checkpoint"):
        assert re.search(rf"\b{key}\b", done.stdout)


@pytest.mark.parametrize(
    "words", [[], ["experiment=mixer_l16_imagenet21k", "trainer=ddp"], ["seed=3", "logger=wandb"]]
)
def test_the_shown_recipe_is_the_one_that_runs(program, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)  # where the program runs, too: relative folders are shown as they are stored
    done = program("train.py", *words, "--cfg", "job", "--resolve")
    assert done.returncode == 0, done.stderr
    runs = compose_one("train", words).to_dict()
    runs.pop("choices")
    shown = yaml.safe_load(done.stdout)
    for key in ("duration", "eval_every", "checkpoint_every"):  # the one that does not hold is null
        shown[key] = {unit: amount for unit, amount in shown[key].items() if amount is not None}
    assert shown == runs
    assert "${" not in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_parameter_that_stands_in_no_file(program):
    done = program("train.py", "trainer.decode_threads=1", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["trainer"]["decode_threads"] == 1


def test_flags_may_stand_anywhere(program):
    done = program("train.py", "model=mixer_s16", "--cfg", "job", "seed=3")
    assert done.returncode == 0, done.stderr
    shown = yaml.safe_load(done.stdout)
    assert (shown["seed"], shown["model"]["hidden_dim"]) == (3, 512)


def test_the_help_texts_own_example(program):
    done = program("train.py", "model=mixer_s16", "data=folder", "data.root=~/birds", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert Path(yaml.safe_load(done.stdout)["data"]["root"]).expanduser() == Path("~/birds").expanduser()


def test_no_argument_is_the_default_recipe(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    begun = []
    monkeypatch.setattr("mixer_lightning.cli.train.train", lambda recipe, run_dir: begun.append(run_dir) or 0)
    assert console.main(["train"]) == 0
    assert [str(path) for path in begun] == [
        "runs/default/convmixer_96_4-digits-seed0"
    ]  # as the README shows


def test_hydra_silences_nobody(monkeypatch, tmp_path):
    """Loggers that are there before Hydra sets up its own: "this file system has no locks" is said in a run."""
    monkeypatch.chdir(tmp_path)
    silenced = []

    def run(recipe, run_dir):
        loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict]
        silenced.extend(
            log.name for log in loggers if log.name.startswith("mixer_lightning") and log.disabled
        )
        return 0

    monkeypatch.setattr("mixer_lightning.cli.train.train", run)
    assert "mixer_lightning.files" in logging.root.manager.loggerDict
    assert console.main(["train"]) == 0
    assert silenced == []


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("finetune", "'checkpoint' is missing"),
        ("evaluate", "'checkpoint' is missing"),
        ("predict", "'images' is missing"),
        ("export", "'to' is missing"),
        ("transfer", "'checkpoint' is missing"),
        ("prepare", "'output' is missing"),
    ],
)
def test_no_argument_where_some_are_needed(monkeypatch, tmp_path, capsys, command, message):
    monkeypatch.chdir(tmp_path)
    try:
        code = console.main([command])
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert message in "".join(capsys.readouterr())
    assert not [*tmp_path.iterdir()]


# ---------------------------------------------------------------------------------------------- real runs


@pytest.fixture(scope="module")
def first_minute(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A whole run from the command line, in an empty folder, with nobody at the keyboard."""
    folder = tmp_path_factory.mktemp("first")
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *TINY, "name=first"],
        cwd=folder, env=dict(os.environ), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    return folder, done


def test_a_run_says_what_it_does(first_minute):
    folder, done = first_minute
    assert done.returncode == 0, done.stderr
    run_dir = Path("runs/first/mixer_digits-digits-seed0")
    first, *_ = done.stdout.splitlines()
    for words in ("digits", "1,437 train", "360 test", "10 classes", "mixer_digits", "parameters", "cpu"):
        assert words in first
    result = json.loads((folder / run_dir / "result.json").read_text())
    assert f"{result['num_parameters']:,} parameters" in first
    said = " ".join(done.stdout.split())
    assert f"test/top1 {100 * result['metrics']['test/top1']:.2f} %" in said
    assert str(run_dir / "best.ckpt") in done.stdout
    assert str(run_dir / "curves.png") in done.stdout
    assert "Traceback" not in done.stderr


def test_a_run_leaves_the_files_of_the_readme_and_no_others(first_minute):
    folder, _ = first_minute
    (run_dir,) = folder.glob("runs/*/*")
    assert {path.name for path in run_dir.iterdir()} == {
        "recipe.yaml", "metrics.jsonl", "metrics.csv", "result.json",
        "last.ckpt", "best.ckpt", "first_batch.png", "curves.png", "log.txt", "per_class_test.csv",
    }  # fmt: skip
    assert (run_dir / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in folder.iterdir()] == ["runs"]


def test_the_log_has_the_words_of_the_screen_and_when_they_were_said(first_minute):
    folder, done = first_minute
    (log,) = folder.glob("runs/*/*/log.txt")
    lines = [line.rstrip() for line in log.read_text().splitlines()]
    assert [line[21:] for line in lines] == [line.rstrip() for line in done.stdout.splitlines()]
    times = [datetime.strptime(line[:19], "%Y-%m-%d %H:%M:%S") for line in lines]
    assert times == sorted(times)
    assert timedelta(0) <= datetime.now() - times[0] < timedelta(hours=1)


def test_a_finished_run_says_so_without_waiting(first_minute):
    folder, before = first_minute
    (result,) = folder.glob("runs/*/*/result.json")
    stamp = result.stat().st_mtime_ns
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "train.py"), *TINY, "name=first", "trainer.decode_threads=1"],
        cwd=folder, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    first, *table = done.stdout.splitlines()
    assert "has finished this recipe" in first
    assert table == before.stdout.splitlines()[-len(table) :]  # the same table
    assert not re.search(r"\| +torch$", done.stderr, re.MULTILINE)
    assert result.stat().st_mtime_ns == stamp


def test_another_recipe_in_the_same_directory(first_minute):
    folder, _ = first_minute
    (log,) = folder.glob("runs/*/*/log.txt")
    before = log.read_text()
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *TINY, "name=first", "optimizer.lr=0.5", "repeats=2"],
        cwd=folder, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    said = done.stdout + done.stderr
    assert "holds a run of another recipe" in said
    assert "optimizer.lr: 0.001 there, 0.5 here" in said
    assert "repeats: 1 there, 2 here" in said
    assert said.count(" there, ") == 2
    assert "name=" in said
    assert log.read_text() == before


def test_a_run_directory_below_a_file(program, tmp_path):
    (tmp_path / "taken").write_text("a file")
    done = program("train.py", "hydra.run.dir=taken/run")
    assert done.returncode == 2
    assert "taken" in done.stdout + done.stderr
    assert "hydra.run.dir=" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_help_shows_the_choices_of_a_folder_of_ones_own(program, tmp_path):
    (tmp_path / "my" / "model").mkdir(parents=True)
    (tmp_path / "my" / "model" / "mixer_mine.yaml").write_text("# A Mixer for my birds.\n_target_: x\n")
    done = program("train.py", "--config-dir=my", "--help")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^  mixer_mine +A Mixer for my birds\.$", done.stdout, re.MULTILINE)
    assert "mixer_s16" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config-dir=nowhere"], "--config-dir: there is no folder"),
        (["--config-name=finetune"], "recipes are those of conf/train.yaml"),
        (["--resolve"], "--resolve belongs to --cfg"),
    ],
)
def test_flags_that_mean_nothing_here(program, tmp_path, words, message):
    done = program("train.py", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--info", "searchpath"], "conf"),
        (["--hydra-help"], "Hydra"),
        (["--cfg", "hydra"], "launcher"),
        (["-sc", "install=bash"], "complete"),
    ],
)
def test_what_hydra_shows(program, tmp_path, words, said):
    done = program("train.py", *words)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_mistyped_option_is_answered_in_a_sentence(program):
    done = program("train.py", "--hlep")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "unknown option '--hlep': did you mean '--help'?\n"


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"]])
def test_a_reader_that_goes_away_is_no_error(tmp_path, words):
    """`mixer train --help | head -1`."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "mixer_lightning", *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=write,
        stderr=subprocess.PIPE,
        timeout=300,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_table_of_models_fits_a_terminal_of_80_columns(monkeypatch, capsys):
    monkeypatch.setattr("mixer_lightning.cli.models.list_models", lambda: ["mixer_b16", "convmixer_1536_20"])
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    assert console.main(["models"]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    for text in ("mixer_b16", "59,880,472", "convmixer_1536_20", "224 px", "81.37 %", "2201.09792"):
        assert text in said


def test_a_transfer_of_a_checkpoint_that_is_not_there(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    for words in (["checkpoint=no/such.npz"], ["checkpoint=no/such.npz", "model=mixer_b16", "--dry-run"]):
        assert console.main(["transfer", *words]) == 2
        assert "there is no checkpoint file no/such.npz" in capsys.readouterr().out
    assert not [*tmp_path.iterdir()]


def test_nothing_is_left_of_a_run_that_was_refused(program, tmp_path):
    assert program("finetune.py", "checkpoint=no/such.npz").returncode == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "seed=range(0,0)"], "the sweep has no jobs: one of its values is an empty list"),
        (["-m", "seed=0,1", "--cfg", "job"], "--cfg shows the recipe of one job: leave out -m"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_in_a_sentence(program, tmp_path, arguments, message):
    done = program("train.py", *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{message}\n")
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_under_a_launcher_is_refused(program):
    env = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    done = program("train.py", "-m", "seed=0,1", "trainer=ddp", **env)
    assert done.returncode == 2
    assert "in one process: start it without a launcher" in done.stderr
