"""The table after a sweep, and a sweep from the command line."""

from __future__ import annotations

import csv
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import TINY
from mixer_lightning import results
from mixer_lightning.config.compose import Job, compose
from mixer_lightning.config.recipe import Recipe
from mixer_lightning.reports.sweep import SweptRun, summarise, table


def run_of(value: float, *, metric: str = "test/top1", **varied: Any) -> SweptRun:
    """A finished run of a sweep."""
    return SweptRun(varied, {"train/top1": 1.0, metric: value})


def test_mean_and_deviation_over_seeds_best_first():
    found = [
        run_of(0.50, lr=0.1, seed=0),
        run_of(0.70, lr=0.1, seed=1),
        run_of(0.90, lr=0.2, seed=0),
        run_of(0.94, lr=0.2, seed=1),
        run_of(0.98, lr=0.2, seed=2),
    ]
    rows = table(found, "test/top1")
    assert [{key: row[key] for key in ("lr", "seeds")} for row in rows] == [
        {"lr": "0.2", "seeds": 3},
        {"lr": "0.1", "seeds": 2},
    ]
    assert [row["mean"] for row in rows] == pytest.approx([0.94, 0.60])
    # by hand: sqrt((.04^2 + 0 + .04^2) / 2) = .04 and sqrt((.1^2 + .1^2) / 1) = .1 sqrt 2
    assert [row["std"] for row in rows] == pytest.approx([0.04, 0.1 * 2**0.5])
    assert all(set(row) == {"lr", "seeds", "mean", "std"} for row in rows)


def test_one_seed_has_no_deviation():
    assert table([run_of(0.5)], "test/top1") == [{"seeds": 1, "mean": 0.5, "std": None}]


def test_a_seed_counts_once():
    """hydra.sweep.subdir by number gives seed=0,0,1 three directories, and two seeds."""
    rows = table([run_of(0.5, seed=0), run_of(0.5, seed=0), run_of(0.7, seed=1)], "test/top1")
    assert [(row["seeds"], row["mean"]) for row in rows] == [(2, pytest.approx(0.6))]


def test_of_a_loss_less_is_better_and_what_is_not_finite_stands_last():
    for metric, order in (("val/loss", ["2", "1", "3"]), ("val/f1", ["1", "2", "3"])):
        found = [run_of(0.9, k=1, metric=metric), run_of(0.2, k=2, metric=metric)]
        rows = table([run_of(float("nan"), k=3, metric=metric), *found], metric)
        assert [row["k"] for row in rows] == order


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train/top1", "test/top1", "val/loss", "val/top1"], "val/top1"),
        (["train/top1", "test/top5", "test/top1"], "test/top1"),
        (["train/loss", "train/top1", "val/loss", "fewshot/digits_5shot"], "fewshot/digits_5shot"),
        (["train/top1", "val/rmse"], "val/rmse"),
        (["train/loss", "train/top1"], None),
    ],
)
def test_the_metric_that_sorts(names, expected):
    assert results.main_metric(names) == expected


def finished(folder: Path, name: str, metrics: dict[str, float]) -> Path:
    run_dir = folder / name
    run_dir.mkdir()
    results.write_result(run_dir, {"metrics": metrics})
    return run_dir


def test_a_sweep_is_ranked_by_the_evaluation_that_was_asked_for(tmp_path, capsys):
    """Training top-1 says the opposite."""
    one = finished(tmp_path, "one", {"train/top1": 0.9, "fewshot/digits_5shot": 0.2})
    two = finished(tmp_path, "two", {"train/top1": 0.1, "fewshot/digits_5shot": 0.6})
    assert summarise({one: {"lr": 1}, two: {"lr": 2}}) == 0
    said = capsys.readouterr().out
    assert "fewshot/digits_5shot, best first" in said
    assert [row["lr"] for row in csv.DictReader((tmp_path / "sweep.csv").open())] == ["2", "1"]


def test_a_training_metric_is_called_one(tmp_path, capsys):
    runs = {finished(tmp_path, str(k), {"train/loss": 1.0, "train/top1": k / 9}): {"k": k} for k in (1, 2)}
    summarise(runs)
    said = capsys.readouterr().out
    assert "train/top1, highest first: of training, since the recipe asks for no evaluation" in said
    assert "best" not in said


def test_without_a_metric_in_common_nothing_is_ranked(tmp_path, capsys):
    one = finished(tmp_path, "one", {"train/top1": 0.1, "fewshot/a_5shot": 0.2})
    two = finished(tmp_path, "two", {"train/top1": 0.9, "fewshot/b_5shot": 0.6})
    summarise({one: {"data": "a"}, two: {"data": "b"}})
    said = capsys.readouterr().out
    assert "no metric in common" in said
    assert "20.00 %" in said
    assert "60.00 %" in said
    assert "train/top1" not in said


def test_runs_without_a_result_are_named(tmp_path, capsys):
    runs: dict[Path, dict[str, Any]] = {finished(tmp_path, "a", {"val/top1": 0.5}): {}, tmp_path / "b": {}}
    assert summarise(runs) == 1
    said = capsys.readouterr().out
    assert f"no result: {tmp_path / 'b'}" in said
    assert (tmp_path / "sweep.csv").exists()
    finished(tmp_path, "b", {"val/top1": 0.7})
    assert summarise(runs) == 0
    assert "no result" not in capsys.readouterr().out


def test_a_damaged_result_or_table_is_named_and_the_others_are_shown(tmp_path, capsys):
    runs: dict[Path, dict[str, Any]] = {finished(tmp_path, "a", {"val/top1": 0.5}): {}, tmp_path / "b": {}}
    finished(tmp_path, "b", {"val/top1": 0.7})
    (tmp_path / "b" / "result.json").write_text('{"x"')
    (tmp_path / "sweep.csv").mkdir()
    assert summarise(runs) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "50.00 %" in said
    assert f"{tmp_path / 'sweep.csv'} cannot be written: " in said
    assert f"no result: {tmp_path / 'b'} {tmp_path / 'b' / 'result.json'} is damaged" in said
    rows = list(csv.DictReader((tmp_path / "sweep_runs.csv").open()))
    assert [row["state"] for row in rows] == ["done", "failed"]


def test_no_run_has_a_result(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    assert summarise({tmp_path / "a": {}}) == 1
    assert "no result" in capsys.readouterr().out


# ------------------------------------------------------------------------------------- the jobs of a command line


def jobs_of(*words: str) -> list[Job[Recipe]]:
    jobs, messages, _ = compose("train", ["name=s", "model=mixer_digits", *words], multirun=True)
    assert messages == []
    return jobs


def test_what_a_sweep_varies_is_known_whatever_it_is():
    """The machine's keys, and a key inside of a part whose file is varied too."""
    jobs = jobs_of(
        "trainer.precision=32-true,bf16-mixed", "optimizer=adamw,sgd", "optimizer.lr=0.1,1e-2", "seed=3,4"
    )
    assert len(jobs) == 16
    seen = [tuple(job.varied.values()) for job in jobs]
    assert sorted(set(seen)) == sorted(
        (precision, optimizer, lr, seed)
        for precision in ("32-true", "bf16-mixed")
        for optimizer in ("adamw", "sgd")
        for lr in (0.1, 0.01)
        for seed in (3, 4)
    )
    assert list(jobs[0].varied) == ["trainer.precision", "optimizer", "optimizer.lr", "seed"]


def test_a_job_that_is_asked_for_twice_is_one_job():
    assert [job.recipe.seed for job in jobs_of("seed=0,0,1")] == [0, 1]


def test_two_jobs_never_share_a_directory():
    words = ["name=s", "model=mixer_digits", "hydra.sweep.subdir=x", "seed=0,1"]
    _, messages, _ = compose("train", words, multirun=True)
    assert len(messages) == 1
    assert "would share runs/s/x (they differ in seed)" in messages[0]
    assert len(jobs_of("hydra.sweep.subdir=${hydra.job.num}", "seed=0,1")) == 2  # what the message advises


def test_a_swept_path_is_one_name():
    jobs = jobs_of("data=folder", "data.root=/tmp/a,../b")
    assert [str(job.run_dir) for job in jobs] == [
        f"runs/s/mixer_digits-folder-seed0-data.root={name}" for name in ("_tmp_a", ".._b")
    ]
    deep = "/".join(["very"] * 100)
    first, second = jobs_of("data=folder", f"data.root=/{deep}/a,/other/{deep}/a")
    assert max(len(job.run_dir.name) for job in (first, second)) < 255
    assert first.run_dir != second.run_dir


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            "runs/a-optimizer.lr=0.1,runs/a-optimizer.lr=0.2",
            ["runs/a-optimizer.lr=0.1", "runs/a-optimizer.lr=0.2"],
        ),
        ("runs/a b=1, runs/c", ["runs/a b=1", "runs/c"]),
        ("runs/x-mean=[0.5, 0.5],runs/y", ["runs/x-mean=[0.5, 0.5]", "runs/y"]),
        ("'runs/a,b',runs/c=1", ["runs/a,b", "runs/c=1"]),
        (r"runs/a\,b=1,runs/c", ["runs/a,b=1", "runs/c"]),
        ("runs/it's=1,runs/b", ["runs/it's=1", "runs/b"]),
        ("runs/a=1", ["runs/a=1"]),
    ],
)
def test_a_sweep_over_run_directories_splits_at_its_commas(value, expected):
    assert [job.recipe.checkpoint for job in jobs_of(f"checkpoint={value}")] == expected


def directories(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_dir()}


def test_a_sweep_of_four(program, tmp_path):
    words = (
        "optimizer.lr=0.001,0.01",
        "seed=0,1",
        "name=grid",
        "eval_every.steps=4",
        "duration.steps=4",
    )
    done = program("train.py", "-m", *TINY, *words)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "grid"
    assert directories(folder) == {
        f"mixer_digits-digits-seed{seed}-optimizer.lr={lr}" for seed in (0, 1) for lr in ("0.001", "0.01")
    }
    by_lr: dict[str, list[float]] = {"0.001": [], "0.01": []}
    for path in folder.glob("*/result.json"):
        found = json.loads(path.read_text())
        by_lr[str(found["recipe"]["optimizer"]["lr"])].append(found["metrics"]["test/top1"])
    with (folder / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["optimizer.lr"] for row in rows} == set(by_lr)
    for row in rows:
        values = by_lr[row["optimizer.lr"]]
        assert row["seeds"] == "2"
        assert float(row["mean"]) == pytest.approx(statistics.fmean(values))
        assert float(row["std"]) == pytest.approx(statistics.stdev(values))
    assert float(rows[0]["mean"]) >= float(rows[1]["mean"])
    assert "written to runs/grid/sweep.csv" in done.stdout


@pytest.fixture(scope="module")
def half() -> tuple[str, ...]:
    return ("-m", *TINY, "duration.steps=4", "evals=none", "name=half")


def test_the_others_finish_when_one_job_fails(program, tmp_path, half):
    done = program("train.py", *half, "optimizer.lr=1e30,0.001", "clip_grad_norm=null")
    assert done.returncode == 1
    folder = tmp_path / "runs" / "half"
    assert (folder / "mixer_digits-digits-seed0-optimizer.lr=0.001" / "result.json").exists()
    assert not (folder / "mixer_digits-digits-seed0-optimizer.lr=1e+30" / "result.json").exists()
    assert "no result: runs/half/mixer_digits-digits-seed0-optimizer.lr=1e+30" in done.stdout


STUB = """
import atexit, sys
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from mixer_lightning.cli.program import program

codes = [int(word) for word in sys.argv.pop(1).split(",")]
compositions = []
load = ConfigLoaderImpl.load_configuration

def counted(self, *args, **kwargs):
    compositions.append(1)
    return load(self, *args, **kwargs)

ConfigLoaderImpl.load_configuration = counted
atexit.register(lambda: print(len(compositions), "compositions", file=sys.stderr))

def run(recipe, run_dir):
    assert run_dir.is_dir()
    print("job", recipe.seed, *([run_dir] if recipe.name == "where" else []))
    return codes[recipe.seed]

def after(run_dirs, errors):
    print("after", *run_dirs)
    return int(any(codes))

sys.exit(program("train", sys.argv[1:], run=run, after_sweep=after))
"""


def run_stub(folder: Path, *codes: int, more: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """A sweep of jobs that do nothing and exit with these codes; it prints what it was given to sum up."""
    words = [
        sys.executable,
        "-c",
        STUB,
        ",".join(map(str, codes)),
        "-m",
        f"seed=range({len(codes)})",
        "name=stub",
        *more,
    ]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize(("codes", "expected"), [((0, 0), 0), ((0, 1), 1), ((1, 0, 0), 1), ((2, 2), 2)])
def test_the_exit_code_of_a_sweep(tmp_path, codes, expected):
    done = run_stub(tmp_path, *codes)
    assert done.returncode == expected, done.stderr
    *jobs, last = done.stdout.splitlines()
    assert jobs == [f"job {i}" for i in range(len(codes))]  # all of them, whatever the others do
    assert last.split() == ["after", *(f"runs/stub/convmixer_96_4-digits-seed{i}" for i in range(len(codes)))]


def compositions(done: subprocess.CompletedProcess[str]) -> int:
    """How often Hydra composed a config in the process."""
    (line,) = [line for line in done.stderr.splitlines() if line.endswith(" compositions")]
    return int(line.split()[0])


@pytest.mark.parametrize("num_jobs", [1, 3, 6])
def test_a_sweep_composes_every_job_once(tmp_path, num_jobs):
    done = run_stub(tmp_path, *([0] * num_jobs))
    assert done.returncode == 0, done.stderr
    assert compositions(done) == num_jobs


def test_a_run_composes_once(tmp_path):
    words = [sys.executable, "-c", STUB, "0", "model=mixer_digits"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "job 0\n"
    assert compositions(done) == 1


def test_a_wrong_recipe_is_composed_once(tmp_path):
    done = run_stub(tmp_path, 0, more=("optimizer.lrr=1",))
    assert done.returncode == 2
    assert compositions(done) == 1


@pytest.mark.parametrize("sweeper", [(), ("hydra.sweeper.max_batch_size=1",)], ids=["ours", "hydra's"])
def test_jobs_run_where_hydra_says(tmp_path, sweeper):
    """The same directories and order from our own loop and, with another sweeper's settings, from Hydra's program."""
    place = ("hydra.sweep.dir=elsewhere", "hydra.sweep.subdir=${hydra.job.num}-s${seed}")
    done = run_stub(tmp_path, 0, 1, 0, more=("name=where", *place, *sweeper))
    assert done.returncode == 1, done.stderr
    *jobs, last = done.stdout.splitlines()
    assert jobs == [f"job {i} elsewhere/{i}-s{i}" for i in range(3)]
    assert last.split() == ["after", *(f"elsewhere/{i}-s{i}" for i in range(3))]
    assert run_stub(tmp_path, 0, 143, 0, more=sweeper).returncode == 143


def test_settings_of_the_job_hold(tmp_path):
    """Working directory and environment, which Hydra's launcher sets."""
    script = (
        "import os, sys; from pathlib import Path; from mixer_lightning.cli.program import program\n"
        "def run(recipe, run_dir):\n"
        "    print(run_dir, Path.cwd().name, os.environ['BIRD'])\n"
        "    return 0\n"
        "sys.exit(program('train', sys.argv[1:], run=run, after_sweep=lambda run_dirs, errors: 0))"
    )
    words = ["hydra.job.chdir=true", "++hydra.job.env_set.BIRD=wren", "name=there", "model=mixer_digits"]
    done = subprocess.run(
        [sys.executable, "-c", script, *words], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == ". mixer_digits-digits-seed0 wren\n"


def test_a_refused_job_does_not_mean_that_nothing_was_started(tmp_path):
    assert run_stub(tmp_path, 0, 2).returncode == 1


def test_a_sweep_that_is_asked_to_stop_stops(tmp_path):
    done = run_stub(tmp_path, 0, 143, 0)
    assert done.returncode == 143
    assert [line for line in done.stdout.splitlines() if "job" in line] == ["job 0", "job 1"]


def test_a_wrong_value_stops_a_sweep_before_it_starts(program, tmp_path, half):
    done = program("train.py", *half, "optimizer.lr=0.001,fast")
    assert done.returncode == 2
    assert "'optimizer.lr' takes float, found 'fast'" in done.stderr
    assert list(tmp_path.iterdir()) == []
