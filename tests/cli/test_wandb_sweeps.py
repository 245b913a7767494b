"""The files of sweeps/: the command that W&B's own agent makes of them composes, and its trials keep apart."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb import wandb_agent

from conftest import ROOT, TINY
from mixer_lightning import results
from mixer_lightning.config.compose import compose

FILES = sorted((ROOT / "sweeps").glob("*.yaml"))


class Caught:
    """What the agent would start."""

    def __init__(self, *, env: dict[str, str], command: list[str], forward_signals: bool) -> None:
        self.env, self.command = env, command


@pytest.fixture
def agent(tmp_path, monkeypatch) -> Callable[[list[str]], wandb_agent.Agent]:
    """agent(command): W&B's agent of a sweep, without its server, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_DIR"):
        monkeypatch.setenv(name, "")  # the agent sets them, and they go away again with the test
        monkeypatch.delenv(name)

    def make(command: list[str]) -> wandb_agent.Agent:
        found = wandb_agent.Agent(None, None, sweep_id="sweep1")
        found._sweep_command = command
        return found

    return make


def trials(parameters: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Settings in which each parameter comes to all its values, or both its ends, the others at their first."""
    ends = {key: each.get("values") or [each["min"], each["max"]] for key, each in parameters.items()}
    first = {key: values[0] for key, values in ends.items()}
    yield first
    for key, values in ends.items():
        yield from (first | {key: value} for value in values[1:])


def started(agent: wandb_agent.Agent, run_id: str, program: str, values: dict[str, Any]) -> Any:
    """The process of one trial."""
    args = {key: {"value": value} for key, value in values.items()}
    agent._command_run({"type": "run", "run_id": run_id, "program": program, "args": args})
    return agent._run_processes[run_id]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_trial_composes_and_has_a_place_of_its_own(path, agent, monkeypatch):
    sweep = yaml.safe_load(path.read_text())
    monkeypatch.setattr(wandb_agent, "AgentProcess", Caught)
    found = agent(list(sweep["command"]))
    program = Path(sweep["program"])
    assert (ROOT / program).exists()
    folders = set()
    all_trials = list(trials(sweep["parameters"]))
    for number, values in enumerate(all_trials):
        process = started(found, f"trial{number}", str(program), values)
        start, words = process.command[:3], process.command[3:]
        assert start == ["/usr/bin/env", "python", str(program)]
        monkeypatch.setenv("WANDB_RUN_ID", process.env["WANDB_RUN_ID"])
        composition = compose({"train.py": "train", "finetune.py": "finetune"}[str(program)], words)
        assert composition.messages == []
        (job,) = composition.jobs
        recipe = results.flatten(job.recipe.to_dict())
        assert {key: recipe[key] for key in values} == {
            key: None if value == "null" else value for key, value in values.items()
        }
        assert job.recipe.logger.keys() == {"wandb"}
        assert job.recipe.logger["wandb"]["project"] == sweep["project"]
        assert job.run_dir.parent == Path("runs") / sweep["name"]
        folders.add(job.run_dir)
    assert len(folders) == len(all_trials) > 2


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_metric_is_logged_and_its_splits_may_choose(path):
    """A sweep that looks for the best chooses, which is for images of val; one of all settings reports."""
    sweep = yaml.safe_load(path.read_text())
    name = sweep["metric"]["name"]
    assert name in ("val/top1", "test/top1")
    if name == "test/top1":
        assert sweep["method"] == "grid"
        assert "early_terminate" not in sweep
        return
    values = next(trials(sweep["parameters"]))
    command = [word for word in sweep["command"] if "${" not in word]
    words = [*command, *(f"{key}={value}" for key, value in values.items())]
    (job,) = compose("finetune" if "checkpoint=" in str(words) else "train", words).jobs
    assert job.recipe.val_split is not None
    assert "accuracy" in job.recipe.evals


@pytest.mark.parametrize("value", [None, {"mixup": 0.5}, "a=b"])
def test_what_wandb_writes_as_python_does_is_refused(value, agent, monkeypatch):
    """A null becomes the text None and a mapping Python's: neither passes for a value that was not meant."""
    monkeypatch.setattr(wandb_agent, "AgentProcess", Caught)
    key = "augment" if isinstance(value, dict) else "augment.erase"
    process = started(agent(["${args_no_hyphens}"]), "trial", "train.py", {key: value})
    (word,) = process.command
    composition = compose("train", [word])
    assert composition.jobs == []
    assert "augment" in composition.messages[0]


def test_without_an_agent_a_run_directory_is_a_function_of_the_recipe(monkeypatch):
    monkeypatch.delenv("WANDB_SWEEP_ID", raising=False)
    monkeypatch.setenv("WANDB_RUN_ID", "x1")
    assert compose("train", []).jobs[0].run_dir == Path("runs/default/convmixer_96_4-digits-seed0")


def test_a_trial_that_the_agent_stops_ends_clean(agent, tmp_path, monkeypatch):
    """By SIGTERM, saved, in the W&B run that the agent names: an exit code above 0 would count as a failure."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = ["${env}", sys.executable, "${program}", *TINY, "logger=wandb", "${args_no_hyphens}"]
    found = agent(command)
    program = str(ROOT / "train.py")
    trial = started(found, "bb2", program, {"optimizer.lr": 0.002, "duration.steps": 100000})
    run_dir = tmp_path / "runs/default/mixer_digits-digits-seed0-bb2"
    until = time.monotonic() + 300
    while not (run_dir / "last.ckpt").exists():
        assert time.monotonic() < until
        assert trial.poll() is None
        time.sleep(0.1)
    found._command_stop({"type": "stop", "run_id": "bb2"})
    assert trial.wait(timeout=300) == -signal.SIGTERM
    assert re.search(r"stopped by SIGTERM at step [\d,]+, saved", (run_dir / "log.txt").read_text())
    assert yaml.safe_load((run_dir / "recipe.yaml").read_text())["optimizer"]["lr"] == 0.002
    assert not (run_dir / "result.json").exists()
    (stored,) = run_dir.glob("wandb/offline-run-*")
    assert stored.name.endswith("-bb2")
    assert (run_dir / "wandb/id.txt").read_text() == "bb2"
