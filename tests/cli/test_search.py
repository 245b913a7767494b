"""`mixer search`: proposals, pruning, seeds, errors, and going on after a kill; and what a training as a child is."""

from __future__ import annotations

import csv
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from conftest import ROOT, TINY
from mixer_lightning import children, results
from mixer_lightning.children import Child, num_processes
from mixer_lightning.cli.console import main as mixer
from mixer_lightning.config.overrides import values_by_key
from mixer_lightning.config.space import Dimension, space_of
from mixer_lightning.studies import search
from mixer_lightning.studies.search import rows

VAL = ("train_split=train[:90%]", "val_split=train[90%:]")
WORDS = ("optimizer.lr=tag(log,interval(1e-4,1))", "optimizer.weight_decay=0,0.1")


# ------------------------------------------------------------------------------------------------- the space


def test_a_space_is_written_in_hydras_grammar():
    space = space_of(
        ["model=mixer_digits", "a.lr=tag(log,interval(1e-4,1e-2))", "b=interval(0,1)", "c=int(interval(2,8))",
         "d=range(2,9,2)", "e=x,'y z'", "f=[1,2]", "seed=2,0,1", "+g=range(0.5,2,0.5)"]
    )  # fmt: skip
    assert space.fixed == ["model=mixer_digits", "f=[1,2]"]
    assert space.seeds == [0, 1, 2]
    assert space.dimensions == [
        Dimension("a.lr", low=1e-4, high=1e-2, log=True),
        Dimension("b", low=0.0, high=1.0),
        Dimension("c", low=2, high=8, step=1),
        Dimension("d", low=2, high=8, step=2),
        Dimension("e", choices=("x", "'y z'")),
        Dimension("g", choices=("0.5", "1", "1.5")),
    ]
    words = space.words({"a.lr": 0.003, "b": 0.5, "c": 4, "d": 6, "e": "x", "g": "1"}, seed=1)
    assert words[2:] == ["a.lr=0.003", "b=0.5", "c=4", "d=6", "e=x", "g=1", "seed=1"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to search"),
        (["optimizer.lr=interval(1,0.1)"], "an interval from 1 to 0.1 is empty"),
        (["optimizer.lr=tag(log,interval(0,0.1))"], "a logarithmic interval begins above 0"),
        (["optimizer.lr=tag(lag,interval(0.1,1))"], "unknown tag lag"),
        (["optimizer.lr=0.1,1", "seed=one"], "seed: whole numbers"),
        (["optimizer.lrr=0.1,1"], "unknown key 'optimizer.lrr': did you mean 'optimizer.lr'?"),
        (["--optimizer.lr=0.1,fast"], "'optimizer.lr' takes float, found 'fast'"),
        (
            ["optimizer.lr=0.1,1"],
            "no metric 'val/top1': the evaluations yield none but test figures. Use search.met",
        ),
        (["optimizer.lr=0.1,1", "trainer=ddp"], "trainer.devices=2"),
        (["optimizer.lr=0.1,1", "fast_dev_run=true"], "keeps no figures to search by"),
        (["optimizer.lr=0.1,1", "hydra.run.dir=x"], "hydra.* is the search's own"),
        (["optimizer.lr=0.1,1", "-m"], "unknown option '-m'"),
    ],
)
def test_what_is_wrong_is_said_before_the_first_trial(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(children, "_num_gpus", lambda: 0)
    assert mixer(["search", "train", *words]) == 2
    assert said in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["search.metric=test/top1"], "would choose by test or training images"),
        (["search.trails=3"], "unknown key 'search.trails': did you mean 'search.trials'?"),
        (["search.trials=0"], "trials must be at least 1"),
        (["--config-dir=nowhere"], "--config-dir: there is no folder"),
        (["--config-dir", "nowhere"], "--config-dir: there is no folder"),
    ],
)
def test_wrong_options(words, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        mixer(["search", "train", "optimizer.lr=0.1,1", *words])
    assert said in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------- the trials


class Training:
    """In the place of a child: a training that evaluates three times, the better the nearer its rate is to 0.01."""

    begun: ClassVar[list[str]] = []
    end: ClassVar[Callable[[int, dict[str, str]], int]] = staticmethod(lambda number, given: 0)

    def __init__(self, argv: list[str], *, processes: int, hear: Callable[[str], None]) -> None:
        self.given = dict(word.split("=", 1) for word in argv if "=" in word)
        self.run_dir = Path(values_by_key(argv[1:])["hydra.run.dir"][0])
        self.hear, self.last_lines, self.stopped = hear, list[str](), False
        assert argv[0] == "train"
        assert processes == 1
        Training.begun.append(self.run_dir.name)

    def ask_to_stop(self) -> None:
        self.stopped = True

    def poll(self) -> int | None:
        return None

    def wait(self, requests: Any, *, look: Callable[[], None]) -> int:
        self.run_dir.mkdir(exist_ok=True)
        value = 1 - abs(math.log10(float(self.given["optimizer.lr"])) + 2) / 4
        value -= 0.01 * int(self.given["seed"])
        for step in (1, 2, 3):
            results.append_metrics(
                self.run_dir, {"step": step, "val/top1": value * step / 3, "train/loss": 1.0}
            )
            look()
            if self.stopped:
                return 143
        code = Training.end(len(Training.begun) - 1, self.given)
        if code:
            self.last_lines += [
                "step 3 gave a loss that is not finite",
                "The last good checkpoint, step 2, stands",
            ]
            return code
        record = {"metrics": {"val/top1": value, "test/top1": 0.5}}
        (self.run_dir / results.RESULT).write_text(json.dumps(record))
        return 0


@pytest.fixture
def searched(tmp_path, monkeypatch):
    """searched(*words) -> the exit code and the rows of search.csv, in an empty folder."""
    folder = tmp_path / "it's a b"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(search, "Child", Training)
    monkeypatch.setattr(Training, "begun", [])

    def run(*words: str, name: str = "s") -> tuple[int, list[dict[str, str]]]:
        code = mixer(["search", "train", *VAL, "model=mixer_digits", *WORDS, f"name={name}", *words])
        path = folder / "runs" / name / "search" / search.TABLE
        return code, list(csv.DictReader(path.open())) if path.exists() else []

    return run


def test_seeds_values_states_and_errors_stand_in_one_table(searched, monkeypatch, capsys):
    """The second trial fails at its second seed; a trial's value is the mean over its seeds."""
    monkeypatch.setattr(Training, "end", lambda number, given: int(number == 3))
    code, table = searched("search.trials=3", "seed=0,1")
    assert code == 0
    assert [(row["trial"], row["seed"], row["state"]) for row in table] == [
        (str(trial), str(seed), "fail" if trial == 1 else "complete") for trial in range(3) for seed in (0, 1)
    ]
    for row in (table[0], table[4]):
        other = table[table.index(row) + 1]
        assert float(row["val/top1"]) - float(other["val/top1"]) == pytest.approx(0.01)
        assert float(row["mean"]) == pytest.approx((float(row["val/top1"]) + float(other["val/top1"])) / 2)
    assert table[2]["error"] == "step 3 gave a loss that is not finite"
    assert len({row["optimizer.lr"] for row in table}) == 3
    best = max(table, key=lambda row: float(row["mean"] or 0))
    said = " ".join(capsys.readouterr().out.split())
    line = said[said.index("best: mixer train ") : said.index(" written to ")]
    assert shlex.split(line)[3:8] == [
        *VAL,
        "model=mixer_digits",
        "name=s",
        f"optimizer.lr={best['optimizer.lr']}",
    ]


def test_trials_below_the_median_are_stopped(searched):
    code, table = searched("search.trials=6", "search.startup=2")
    assert code == 0
    states = [row["state"] for row in table]
    assert states[:2] == ["complete", "complete"]
    assert {"complete", "pruned"} == set(states)
    values = sorted(float(row["mean"]) for row in table[:2])
    for row in table:
        if row["state"] == "pruned":
            assert row["step"] in "123"  # Optuna's median is of the trials so far, at the same step
            assert 3 / int(row["step"]) * float(row["val/top1"]) < max(float(r["mean"] or 0) for r in table)
    assert max(float(row["mean"] or 0) for row in table) >= values[1]
    unpruned = searched("search.trials=4", "search.startup=2", "search.pruner=none", name="all")[1]
    assert {row["state"] for row in unpruned} == {"complete"}


def test_a_search_that_was_killed_goes_on_as_if_it_had_not_been(searched, monkeypatch):
    """Killed in its second trial: that one is made again in the same run directory, and all proposals are the same."""
    _, expected = searched("search.trials=5", "search.startup=2", name="whole")
    Training.begun.clear()

    def killed(number, given):
        raise KeyboardInterrupt

    monkeypatch.setattr(Training, "end", lambda number, given: killed(number, given) if number == 1 else 0)
    with pytest.raises(KeyboardInterrupt):
        searched("search.trials=5", "search.startup=2")
    code, table = searched("search.trials=5", "search.startup=2", "trainer=cpu")
    assert code == 0
    assert Training.begun == [f"trial{number:04d}-seed0" for number in (0, 1, 1, 2, 3, 4)]
    assert [row["optimizer.lr"] for row in table] == [row["optimizer.lr"] for row in expected]
    assert [row["state"] for row in table] == [row["state"] for row in expected]
    more = searched("search.trials=6", "search.startup=2")[1]
    assert more[:5] == table
    assert len(more) == 6


def test_another_search_is_refused_and_a_stopped_training_stops_it(searched, monkeypatch, capsys):
    monkeypatch.setattr(Training, "end", lambda number, given: 143 if number == 1 else 0)
    code, table = searched("search.trials=3")
    assert code == 143
    assert [row["state"] for row in table] == ["complete", "running"]
    assert "the same command goes on from there" in capsys.readouterr().out
    code, _ = searched("search.trials=3", "batch_size=64")
    assert code == 2
    assert "holds another search:" in capsys.readouterr().out


def test_what_no_trial_could_do_ends_the_search(searched, monkeypatch, capsys):
    monkeypatch.setattr(Training, "end", lambda number, given: 2)
    code, _ = searched("search.trials=3")
    assert (code, len(Training.begun)) == (2, 1)
    assert "step 3 gave a loss that is not finite" in capsys.readouterr().out
    monkeypatch.setattr(Training, "end", lambda number, given: 0)
    monkeypatch.setattr(
        search, "check_metric", lambda metric, recipe: None
    )  # an evaluation that does not tell
    code, _ = searched("search.trials=3", "search.metric=val/f1", name="other")
    assert code == 1
    assert "no metric 'val/f1': the evaluations yield val/top1. Use search.metric=" in capsys.readouterr().out
    assert searched("search.trials=2", name="other")[0] == 0  # the advice works


def test_a_real_search_killed_and_gone_on_with(tmp_path):
    """SIGKILL in the first trial: its training saves and ends by itself, and goes on in the second call."""
    words = [*TINY, *VAL, *WORDS, "duration.steps=30", "eval_every.steps=10", "name=s", "search.trials=2"]
    command = [sys.executable, "-m", "mixer_lightning", "search", "train", *words]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    folder = tmp_path / "runs" / "s" / "search"
    first = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL)
    wait_for(lambda: (folder / "trial0000-seed0" / results.LAST).exists())
    first.send_signal(signal.SIGKILL)
    first.wait()
    log = folder / "trial0000-seed0" / results.LOG
    wait_for(lambda: "stopped by SIGTERM at step" in log.read_text() or "result.json" in log.read_text())
    wait_for(lambda: not (folder / "trial0000-seed0" / ".lock").exists())
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    table = list(csv.DictReader((folder / search.TABLE).open()))
    assert [(row["trial"], row["state"]) for row in table] == [("0", "complete"), ("1", "complete")]
    for row in table:
        result = results.read_result(folder / row["run"])
        assert result is not None
        assert float(row["mean"]) == result["metrics"]["val/top1"]
        assert float(row["optimizer.lr"]) == result["recipe"]["optimizer"]["lr"]
    assert log.read_text().count("resuming") == log.read_text().count("stopped by SIGTERM")


def wait_for(happened: Callable[[], bool], seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_rows_of_a_trial_that_has_not_begun_are_empty(tmp_path):
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    study.ask()
    space = space_of(["a=1,2"])
    made = search.Search("train", space, tmp_path, "val/top1", 1, 1, False, 0, 1, [])
    assert [(row["state"], row["a"], row["mean"]) for row in rows(made, study)] == [("running", "", "")]


# ---------------------------------------------------------------------------------- a training as a child process


@pytest.mark.parametrize(
    ("trainer", "gpus", "expected"),
    [({"devices": 1}, 4, 1), ({"devices": 3}, 0, 3), ({"devices": None}, 4, 4), ({}, 4, 1)],
)
def test_processes_of_a_job(trainer, gpus, expected, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus))))
    assert num_processes(trainer) == expected


def test_a_child_tells_its_exit_code_and_what_it_said():
    lines: list[str] = []
    child = Child(["train", "optimizer.lrr=1"], processes=1, hear=lines.append)
    wait_for(lambda: child.poll() is not None)
    assert child.poll() == 2
    assert lines == ["unknown key 'optimizer.lrr': did you mean 'optimizer.lr'?"]


def test_a_sweep_of_several_processes_is_a_torchrun_for_each_job(tmp_path, monkeypatch, capfd):
    """Two jobs of two processes; the second has a batch that two cannot share. Seeds and errors are in one table."""
    monkeypatch.chdir(tmp_path)
    words = [*TINY, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "name=sweep", "evals=none"]
    words += ["duration.steps=2", "trainer.precision=32-true", "seed=3", "trainer.silence_seconds=300"]
    words = [word for word in words if word not in ("trainer=cpu", "batch_size=60")]
    assert mixer(["train", *words, "-m", "batch_size=60,61"]) == 1
    said = capfd.readouterr().out.replace("process 1: ", "")  # whichever of both is heard first
    assert "2 processes" in said
    table = list(csv.DictReader((tmp_path / "runs" / "sweep" / "sweep_runs.csv").open()))
    ended = [(row["batch_size"], row["seed"], row["state"]) for row in table]
    assert ended == [("60", "3", "done"), ("61", "", "failed")]
    assert table[1]["error"].removeprefix("process 1: ") == "batch_size 61 does not divide among 2 processes"
    assert "no result: runs/sweep/mixer_digits-digits-seed3-batch_size=61  batch_size 61 does not" in said
    result = results.read_result(Path(table[0]["run"]))
    assert result is not None
    assert result["num_devices"] == 2
