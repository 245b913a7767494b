"""Sweeps by submitit: stand-ins for Slurm's programs run what it is given here; a preemption, failures, refusals."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import ROOT, TINY
from mixer_lightning.cli.console import main as mixer
from mixer_lightning.config import submit
from mixer_lightning.config.submit import wrong_processes
from mixer_lightning.screen import Screen

pytest.importorskip("submitit")

#: sbatch, srun, scontrol, sacct, and what a node does with a job: run its script, again where it was queued again.
SLURM = """#!{python}
import os, pathlib, signal, subprocess, sys, time
here, name = pathlib.Path({here!r}), pathlib.Path(sys.argv[0]).name
job = os.environ.get("SLURM_ARRAY_JOB_ID", "") + "_" + os.environ.get("SLURM_ARRAY_TASK_ID", "")
if name == "sbatch":
    text = pathlib.Path(sys.argv[-1]).read_text()
    (here / "script").write_text(text)
    options = dict(line[10:].partition("=")[::2] for line in text.splitlines() if line.startswith("#SBATCH"))
    tasks = options["ntasks-per-node"]
    for index in range(int(options["array"].strip("'").partition("%")[0].partition("-")[2]) + 1):
        of_job = dict(SLURM_JOB_ID=str(4242 + index), SLURM_ARRAY_JOB_ID="4242", SLURM_ARRAY_TASK_ID=str(index),
                      SLURM_NTASKS=tasks, SLURM_NTASKS_PER_NODE=tasks, SLURM_JOB_NUM_NODES="1",
                      SLURM_JOB_NODELIST="localhost", SLURM_NODELIST="localhost")
        subprocess.Popen([here / "node", here / "script"], env=os.environ | of_job, start_new_session=True,
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print("Submitted batch job 4242")
elif name == "node":
    while True:
        code = subprocess.run(["bash", sys.argv[1]], check=False).returncode
        if not (here / f"{{job}}.requeue").exists():
            break
        (here / f"{{job}}.requeue").rename(here / f"{{job}}.requeued")
    (here / f"{{job}}.code").write_text(str(code))
elif name == "srun":
    command = sys.argv[next(i for i, word in enumerate(sys.argv) if i and not word.startswith("-") and
                            sys.argv[i - 1] not in ("--output", "--error")):]
    given = dict(zip(sys.argv, sys.argv[1:]))
    started = []
    for rank in range(int(os.environ["SLURM_NTASKS"])):
        files = [open(given[each].replace("%A_%a", job).replace("%t", str(rank)), "a")
                 for each in ("--output", "--error")]
        of_task = dict(SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank), SLURM_NODEID="0", SLURM_STEP_ID="0")
        started.append(subprocess.Popen(command, env=os.environ | of_task, stdout=files[0], stderr=files[1]))
    signal_at = pathlib.Path(os.environ.get("SIGNAL_AT", "/none"))
    while any(each.poll() is None for each in started):
        if job == "4242_0" and signal_at.exists() and not (here / "signalled").exists():
            (here / "signalled").touch()
            for each in started:
                each.send_signal(signal.SIGUSR1)
        time.sleep(0.02)
    sys.exit(max(each.returncode % 256 for each in started))
elif name == "scontrol":
    (here / f"{{sys.argv[2]}}.requeue").touch()
elif name == "sacct":
    print("JobID|State|NodeList")
    for path in here.glob("*.code"):
        print(f"{{path.stem}}|{{'COMPLETED' if path.read_text() == '0' else 'FAILED'}}|localhost")
"""


@pytest.fixture
def slurm(tmp_path: Path) -> Path:
    """A folder of Slurm's programs, to be put before everything else on PATH."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name in ("sbatch", "node", "srun", "scontrol", "sacct"):
        (folder / name).write_text(SLURM.format(python=sys.executable, here=str(folder)))
        (folder / name).chmod(0o755)
    return folder


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(run_dir / "last.ckpt", weights_only=True)["state_dict"])


def test_each_run_is_a_job_each_task_a_process_and_a_time_limit_loses_nothing(
    program, slurm: Path, tmp_path: Path
):
    """Of two equal trainings the first is told that its time is up: saved, queued again, and the weights are equal."""
    folder = tmp_path / "runs" / "s"
    runs = [folder / f"mixer_digits-digits-seed0-log_every_steps={every}" for every in (7, 8)]
    done = program(
        "train.py", "-m", *TINY, "trainer=ddp", "trainer.accelerator=cpu", "duration.steps=60", "eval_every.steps=60",
        "trainer.silence_seconds=300",
        "checkpoint_every.steps=10", "log_every_steps=7,8", "name=s", "hydra/launcher=submitit_slurm",
        "hydra.launcher.nodes=1", "hydra.launcher.tasks_per_node=2", "hydra.launcher.cpus_per_task=3",
        "hydra.launcher.setup=['export FROM_SETUP=1']", "+hydra.launcher.additional_parameters={mail-user: me}",
        PATH=f"{slurm}:{os.environ['PATH']}", SIGNAL_AT=str(runs[0] / "last.ckpt"), MASTER_ADDR="elsewhere",
        SLURM_PTY_PORT="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "submitted 2 jobs, 2 processes each: 4242_0, 4242_1. What they print is in runs/s/.submitit"
        in done.stdout
    )
    assert f"job 4242_1 done: runs/s/{runs[1].name}" in done.stdout
    assert (slurm / "4242_0.requeued").exists()
    assert not (slurm / "4242_1.requeued").exists()
    log = (runs[0] / "log.txt").read_text()
    assert "stopped by SIGUSR1 at step" in log
    assert "resuming" in log
    first, second = map(weights, runs)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    with (folder / "sweep.csv").open(newline="") as file:
        assert len({row["mean"] for row in csv.DictReader(file)}) == 1
    with (folder / "sweep_runs.csv").open(newline="") as file:
        assert [row["state"] for row in csv.DictReader(file)] == ["done", "done"]
    script = (slurm / "script").read_text().splitlines()
    assert {"#SBATCH --nodes=1", "#SBATCH --ntasks-per-node=2", "#SBATCH --signal=USR1@120", "#SBATCH --requeue",
            "#SBATCH --mail-user=me", "export FROM_SETUP=1"} <= set(script)  # fmt: skip
    assert not any("gpus" in line for line in script)
    (srun,) = [line.split() for line in script if line.startswith("srun")]
    assert {"--kill-on-bad-exit=0", "--cpus-per-task=3"} <= set(srun)


STUB = """
import os, signal, sys
from pathlib import Path
from mixer_lightning import launcher
from mixer_lightning.cli.program import program
from mixer_lightning.screen import Screen
from mixer_lightning.stopping import Stopped

def run(recipe, run_dir):
    rank = launcher.rank()
    lives = run_dir / f"lives{rank}"
    lives.write_text(lives.read_text() + "+" if lives.exists() else "+")
    (run_dir / f"world{rank}").write_text(str(launcher.launched().world_size))
    if recipe.seed == 1:
        Screen().alarm("no image has a label")
        return 1
    if recipe.seed == 2 and lives.read_text() == "+":
        try:
            os.kill(os.getpid(), signal.SIGUSR1)
            signal.pause()
        except Stopped:
            return 143
    if recipe.seed == 3:
        if rank == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        Screen().alarm("process 0 has gone")
        return 1
    return 0

def after(run_dirs, errors):
    for run_dir in run_dirs:
        print(run_dir.name, errors.get(run_dir, "-"), sep=": ")
    return 0

if __name__ == "__main__":
    sys.exit(program("train", sys.argv[1:], run=run, after_sweep=after))
"""


def test_on_this_machine_what_becomes_of_each_job_is_known(tmp_path: Path):
    """One is done, one fails, one is queued again, of one the first process is killed."""
    (tmp_path / "stub.py").write_text(STUB)
    words = [
        "-m", "seed=0,1,2,3", "name=s", "model=mixer_digits", "hydra.sweep.subdir=${seed}", "trainer=ddp",
        "trainer.accelerator=cpu", "hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "stub.py", *words], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.splitlines()[-4:] == [
        "0: -", "1: no image has a label", "2: -", "3: process 0 has gone",
    ], done.stdout + done.stderr  # fmt: skip
    assert done.returncode == 1
    folder = tmp_path / "runs" / "s"
    for seed in range(4):
        assert {(folder / str(seed) / f"world{rank}").read_text() for rank in (0, 1)} == {"2"}
        assert (folder / str(seed) / "lives0").read_text() == ("++" if seed == 2 else "+")
    assert {path.name for path in folder.iterdir()} == {"0", "1", "2", "3", ".submitit"}


# -------------------------------------------------------------------------------------------------- before it begins

OPTIONS = {"nodes": 1, "tasks_per_node": 1, "gpus_per_node": None, "gpus_per_task": None, "timeout_min": 60,
           "cpus_per_task": None, "mem_gb": None}  # fmt: skip


@pytest.mark.parametrize(
    ("devices", "options", "cluster", "said"),
    [
        (1, {}, "slurm", None),
        (None, {"tasks_per_node": 8}, "slurm", None),
        (None, {"nodes": 4}, "slurm", None),
        (8, {"tasks_per_node": 8, "nodes": 2}, "slurm", None),
        (1, {"tasks_per_node": 8}, "slurm", "use trainer=ddp"),
        (1, {"nodes": 2}, "slurm", "starts 2 processes"),
        (None, {}, "slurm", "hydra.launcher.tasks_per_node=8"),
        (4, {"tasks_per_node": 8}, "slurm", "trainer.devices is 4"),
        (None, {"tasks_per_node": 8, "gpus_per_node": 4}, "slurm", "gpus_per_node=8"),
        (None, {"tasks_per_node": 8, "gpus_per_task": 1}, "slurm", "gpus_per_node=8"),
        (1, {"tasks_per_node": 0}, "slurm", "must be at least 1, found 0"),
        (None, {"nodes": 2}, "local", "this machine alone"),
        (1, {"mem_gb": 4}, "local", "has no mem_gb"),
    ],
)
def test_tasks_are_the_processes_that_the_trainer_wants(devices, options, cluster, said):
    found = wrong_processes({"devices": devices}, OPTIONS | options, cluster)
    assert found is None if said is None else said in str(found)


@pytest.mark.parametrize("on_gpus", [True, False])
def test_a_task_has_a_gpu_and_its_job_another_try(slurm: Path, tmp_path: Path, monkeypatch, on_gpus: bool):
    monkeypatch.setenv("PATH", str(slurm), prepend=os.pathsep)
    monkeypatch.setenv("SUBMITIT_PREEMPT_SIGNAL", "USR2")
    options: dict[str, Any] = OPTIONS | {
        "tasks_per_node": 8,
        "submitit_folder": str(tmp_path),
        "max_num_timeout": 0,
    }
    executor = submit._executor(options, cluster="slurm", stated=set(), on_gpus=on_gpus)
    assert executor.parameters.get("gpus_per_node") == (8 if on_gpus else None)
    assert executor._executor.max_num_timeout == submit.REQUEUES
    executor = submit._executor(
        options | {"gres": "gpu:h100:8"},
        cluster="slurm",
        stated={"hydra.launcher.max_num_timeout"},
        on_gpus=True,
    )
    assert "gpus_per_node" not in executor.parameters
    assert executor._executor.max_num_timeout == 0


def refused(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as end:
        mixer(["train", *TINY, *words])
    assert end.value.code == 2
    return str(capsys.readouterr().err)


SWEEP = ("-m", "seed=0,1", "hydra/launcher=submitit_slurm")


def test_what_is_refused(capsys, monkeypatch, tmp_path: Path):
    """In one line, before anything is written or submitted."""
    monkeypatch.chdir(tmp_path)
    assert "add -m" in refused(capsys, "hydra/launcher=submitit_slurm")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert refused(capsys, *SWEEP).startswith(
        "there is no sbatch here: submit from a node of a Slurm cluster"
    )
    assert "hydra.launcher.* one value each" in refused(capsys, *SWEEP, "hydra.launcher.nodes=1,2")
    assert "has no part for hydra.sweeper" in refused(capsys, *SWEEP, "hydra.sweeper.max_batch_size=1")
    assert "use trainer=ddp" in refused(capsys, *SWEEP, "hydra.launcher.tasks_per_node=8")
    assert "nodes" in refused(capsys, *SWEEP, "hydra.launcher.nodes=two")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert refused(capsys, *SWEEP) == (
        "hydra/launcher=submitit_slurm needs submitit: pip install -e '.[slurm]'\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_what_sbatch_refuses_is_said(capsys, monkeypatch, slurm: Path, tmp_path: Path):
    (slurm / "sbatch").write_text(
        "#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpu' >&2; exit 1\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(slurm), prepend=os.pathsep)
    said = refused(capsys, *SWEEP)
    assert "the jobs could not be submitted: sbatch: error: invalid partition specified: gpu" in said


def test_asked_to_stop_it_leaves_slurms_jobs_alone(capsys):
    class Submitted:
        job_id, num_tasks = "4242_0", 1

        def task(self, number: int) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            return self

        class paths:  # noqa: N801
            result_pickle = Path("/none")

        def done(self, force_check: bool) -> bool:
            return False

    with pytest.raises(SystemExit) as end:
        submit._wait([None], [Submitted()], screen=Screen(), cluster="slurm", errors={})  # type: ignore[list-item]
    assert end.value.code == 143
    assert "SIGTERM: the jobs go on without this command; scancel 4242 ends them" in capsys.readouterr().out
