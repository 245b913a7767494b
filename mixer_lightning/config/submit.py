"""Jobs of a sweep that submitit hands to Slurm, or starts here: `hydra/launcher=submitit_slurm`, `submitit_local`.

A run of the sweep is one job, and each task of the job is one process of the training: nothing is relaunched. The job
gets the recipe as it was composed and checked here, so files that change while it waits in a queue do not matter. Of
hydra-submitit-launcher come the options; its own launcher gives a sweep up at the first job that fails.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import signal
import site
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from mixer_lightning import launcher, stdio, stopping
from mixer_lightning.children import PACKAGE_PARENT
from mixer_lightning.config.compose import Job
from mixer_lightning.screen import LAST_SAID, Screen, error_in, refuse
from mixer_lightning.stopping import StopRequests, exit_code

Cluster = Literal["slurm", "local"]
#: The classes of hydra-submitit-launcher by whose names a composed config asks for submitit.
LAUNCHERS: dict[str, Cluster] = {
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher": "slurm",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher": "local",
}
PREEMPTION = (
    signal.SIGUSR1
)  # by which submitit says that the time is nearly up; its own choice, SIGUSR2, has no save
REQUEUES = 1000  # after a time limit, unless hydra.launcher.max_num_timeout is given
FIRST_PORT = 15000
POLL_SECONDS = 0.5
ASK_SLURM_SECONDS = (
    60.0  # between two questions about a job of which a process has ended before the first one
)
#: Options of Slurm that submitit's local executor would leave out in silence.
SLURM_ALONE = ("cpus_per_task", "mem_gb")


class JobFailed(Exception):
    """A job has failed: "<exit code> <why>"."""


def cluster_of(config: DictConfig) -> Cluster | None:
    """Where submitit is to start the jobs of a composed config; None where they are not its."""
    return LAUNCHERS.get(config.hydra.launcher._target_)


# -------------------------------------------------------------------------------------------- in each task of a job


@dataclass
class Task:
    """What each task of a job calls; `work` gives the exit code of its run. submitit keeps it, for a later session."""

    work: Callable[[], int]

    def __call__(self) -> None:
        """Run; the end tells submitit what has become of the job.

        Raises:
            JobFailed: it failed.
            SystemExit: it was asked to stop. Where the time was up, submitit has queued the job again.
        """
        # The second where the job did not inherit the variable that says PREEMPTION
        handlers = [signal.getsignal(each) for each in (PREEMPTION, signal.SIGUSR2)]
        again = next((each for each in handlers if callable(each)), None)

        def queue_again(number: int) -> None:
            """Let submitit do so where the time is up: it exits, or says that the time has been up too often."""
            if number == PREEMPTION and launcher.is_first() and again is not None:
                again(PREEMPTION, None)

        stopping.before_quit = queue_again
        stdio.secure()
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        stopping.install()
        _take_the_place_of_a_launcher()
        LAST_SAID.clear()
        try:
            code = self.work()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        if stopping.stopped_by:
            for each in stopping.SIGNALS:
                signal.signal(each, signal.SIG_IGN)  # Slurm ends what it queues again
            queue_again(stopping.stopped_by)
            raise SystemExit(code)
        if code:
            sys.tracebacklimit = 0
            raise JobFailed(f"{code} {error_in(LAST_SAID)}")

    def checkpoint(self) -> Any:
        """For submitit: what is to be called when the job runs again; the run goes on from its checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _take_the_place_of_a_launcher() -> None:
    """Let this process find its number and where to meet: what srun has said, or submitit's local executor."""
    import submitit

    job = submitit.JobEnvironment()
    for name in [name for name in os.environ if launcher.is_of_torchrun(name)]:
        del os.environ[name]  # of the shell from which the job was submitted
    if job.cluster == "slurm":
        os.environ.pop("SLURM_PTY_PORT", None)
        os.environ["MASTER_ADDR"] = job.hostnames[0]
        os.environ["MASTER_PORT"] = str(FIRST_PORT + int(job.raw_job_id) % 10000)
        os.environ.setdefault("OMP_NUM_THREADS", os.environ.get("SLURM_CPUS_PER_TASK", "1"))
        return
    stopping.stop_with_parent()
    if job.num_tasks > 1:
        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1",
            "TORCHELASTIC_RUN_ID": job.job_id,
        }  # by which Lightning knows
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // job.num_tasks)))


# ------------------------------------------------------------------------------------------------- where it is typed


def submit(
    jobs: Sequence[Job[Any]],
    work: Callable[[Job[Any]], int],
    *,
    cluster: Cluster,
    stated: set[str],
    errors: dict[Path, str],
) -> list[int]:
    """Submit a job for each run, wait for all, and return their exit codes; `errors` gets what the failed have said.

    Asked to stop: the jobs of Slurm go on, those of this machine save and end.

    Args:
        jobs: of one sweep.
        work: the run of a job, called in each of its tasks; its exit code.
        cluster: of the jobs' launcher.
        stated: keys of the command line.
        errors: by run directory.
    """
    options = _options(jobs)
    messages = [wrong for job in jobs if (wrong := wrong_processes(job.recipe.trainer, options, cluster))]
    if messages:
        refuse(list(dict.fromkeys(messages)))
    if cluster == "slurm" and (gone := [name for name in ("sbatch", "srun") if not shutil.which(name)]):
        where = "submit from a node of a Slurm cluster, or try the sweep on this machine"
        refuse([f"there is no {gone[0]} here: {where} with hydra/launcher=submitit_local"])
    tasks = options["nodes"] * options["tasks_per_node"]
    on_gpus = any(job.recipe.trainer.get("accelerator") != "cpu" for job in jobs)
    executor = _executor(options, cluster=cluster, stated=stated, on_gpus=on_gpus)
    with _environment_of_jobs(cluster):
        submitted = _hand_over(executor, [Task(functools.partial(work, job)) for job in jobs])
    screen = Screen()
    numbers = ", ".join(each.job_id for each in submitted)
    each_of = f", {tasks} processes each" if tasks > 1 else ""
    folder = os.path.relpath(Path(str(options["submitit_folder"]).partition("%")[0]))
    count = f"{len(jobs)} jobs" if len(jobs) > 1 else "a job"
    screen.say(f"submitted {count}{each_of}: {numbers}. What they print is in {folder}")
    return _wait(jobs, submitted, screen=screen, cluster=cluster, errors=errors)


def _options(jobs: Sequence[Job[Any]]) -> dict[str, Any]:
    """hydra.launcher, which all jobs of a sweep have alike."""
    found: list[Any] = [OmegaConf.to_container(job.config.hydra.launcher, resolve=True) for job in jobs]
    if any(each != found[0] for each in found):
        refuse(["the jobs of a sweep are submitted together: give hydra.launcher.* one value each"])
    return dict(found[0])


def wrong_processes(trainer: Mapping[str, Any], options: Mapping[str, Any], cluster: Cluster) -> str | None:
    """What is wrong with the number of tasks for a `trainer`, whose every process is a task."""
    tasks, nodes, gpus = options["tasks_per_node"], options["nodes"], options["gpus_per_node"]
    devices, total = trainer.get("devices", 1), nodes * tasks
    for key in ("tasks_per_node", "nodes", "timeout_min"):
        if options[key] < 1:
            return f"hydra.launcher.{key} must be at least 1, found {options[key]}"
    if cluster == "local":
        if nodes > 1:
            return "hydra/launcher=submitit_local is this machine alone: leave out hydra.launcher.nodes"
        for key in SLURM_ALONE:
            if options[key] is not None:
                return f"hydra/launcher=submitit_local has no {key}: leave out hydra.launcher.{key}"
    if devices == 1 and total > 1:
        return f"hydra.launcher starts {total} processes for a trainer of one device: use trainer=ddp"
    if devices is None and total == 1:
        return (
            "trainer=ddp has one process for each GPU, and hydra.launcher starts one: say how many a node has, "
            "hydra.launcher.tasks_per_node=8"
        )
    if devices not in (None, 1, tasks):
        return (
            f"trainer.devices is {devices} and hydra.launcher.tasks_per_node {tasks}: leave trainer.devices out, or "
            "make them the same"
        )
    if tasks > 1 and options.get("gpus_per_task") is not None:
        return (
            "process i of a node takes GPU i of it, and with hydra.launcher.gpus_per_task it would see one alone: "
            f"use hydra.launcher.gpus_per_node={tasks}"
        )
    if gpus and gpus < tasks and trainer.get("accelerator") != "cpu":
        return f"{tasks} processes of a node need as many GPUs: hydra.launcher.gpus_per_node={tasks}"
    return None


def _executor(options: Mapping[str, Any], *, cluster: Cluster, stated: set[str], on_gpus: bool) -> Any:
    """submitit's executor with the options of hydra-submitit-launcher, and what a training needs beside."""
    import submitit
    from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

    given = {key: value for key, value in options.items() if key not in ("_target_", "submitit_folder")}
    times = given.pop("max_num_timeout", 0)
    if "hydra.launcher.max_num_timeout" not in stated:
        times = REQUEUES
    asks_for_gpus = any(given.get(key) is not None for key in ("gpus_per_node", "gpus_per_task", "gres"))
    if on_gpus and not asks_for_gpus:
        given["gpus_per_node"] = given["tasks_per_node"]
    if cluster == "slurm":
        # A process may end before the first has queued the job again, and srun does not take this from sbatch
        srun = ["--kill-on-bad-exit=0", "--wait=300"]
        if given.get("cpus_per_task") is not None:
            srun.append(f"--cpus-per-task={given['cpus_per_task']}")
        given["srun_args"] = srun
        given["additional_parameters"] = {"requeue": True, **(given.get("additional_parameters") or {})}
    common = set(BaseQueueConf.__dataclass_fields__)
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = PREEMPTION.name.removeprefix("SIG")
    submitit.JobEnvironment.USR_SIG = os.environ["SUBMITIT_PREEMPT_SIGNAL"]
    executor = submitit.AutoExecutor(
        folder=options["submitit_folder"], cluster=cluster, **{f"{cluster}_max_num_timeout": times}
    )
    executor.update_parameters(
        **{key if key in common else f"{cluster}_{key}": value for key, value in given.items()}
    )
    return executor


def _hand_over(executor: Any, tasks: Sequence[Task]) -> list[Any]:
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        submitted = list(executor.map_array(_call, tasks))
        with contextlib.suppress(OSError):
            executor.folder.rmdir()  # ".../%j", which stays empty
        return submitted
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        refuse([f"the jobs could not be submitted: {_last_line(str(error))}"])


def _call(task: Task) -> None:
    task()


@contextlib.contextmanager
def _environment_of_jobs(cluster: Cluster) -> Iterator[None]:
    """Jobs inherit this process's environment: let them find this package, and Ctrl-C be for this process alone."""
    if str(PACKAGE_PARENT) not in site.getsitepackages():
        known = [str(PACKAGE_PARENT), os.environ.get("PYTHONPATH")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, known))
    before = signal.getsignal(signal.SIGINT)
    if cluster == "local":
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is ignored is inherited
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# ------------------------------------------------------------------------------------------------ waiting for them


def _wait(
    jobs: Sequence[Job[Any]],
    submitted: Sequence[Any],
    *,
    screen: Screen,
    cluster: Cluster,
    errors: dict[Path, str],
) -> list[int]:
    numbers = " ".join(dict.fromkeys(each.job_id.partition("_")[0] for each in submitted))
    goes_on = f"the jobs go on without this command; scancel {numbers} ends them"
    first = goes_on if cluster == "slurm" else "stopping the jobs"
    requests = StopRequests(screen.say, first=first, quitting=str)
    codes: dict[int, int] = {}
    asked = False
    with requests:
        requests.catch()
        while len(codes) < len(jobs) and not (requests.received and cluster == "slurm"):
            if requests.received and not asked:
                asked = True
                for each in submitted:
                    each._process.terminate()  # its controller passes it on
            for number in set(range(len(jobs))) - set(codes):
                outcome = _outcome(submitted[number])
                if outcome is None:
                    continue
                codes[number], why = outcome
                run_dir = jobs[number].run_dir
                if codes[number]:
                    errors[run_dir] = why
                state = f"failed: {run_dir}  {why}" if codes[number] else f"done: {run_dir}"
                screen.say(f"job {submitted[number].job_id} {state}")
            time.sleep(POLL_SECONDS)
    if requests.received:
        raise SystemExit(exit_code(requests.received))
    return [codes[number] for number in range(len(jobs))]


def _outcome(submitted: Any) -> tuple[int, str] | None:
    """Exit code and error of a job; None while it waits, runs, or is to run again."""
    tasks = [submitted.task(number) for number in range(submitted.num_tasks)]
    ended = [task for task in tasks if task.paths.result_pickle.exists()]
    if tasks[0] not in ended and not tasks[0].done(force_check=bool(ended) and _is_time_to_ask(submitted)):
        return None
    for task in [*ended, tasks[0]]:
        error = task.exception()
        if error is not None and task.paths.result_pickle.exists():
            return _told(str(error))
        if error is not None:
            said = error_in(line for line in (task.stdout() or "").splitlines() if "submitit " not in line)
            return 1, f"ended as {task.state.lower()}{f': {said}' if said else ''}"
    return 0, ""


_asked_at: dict[str, float] = {}


def _is_time_to_ask(submitted: Any) -> bool:
    now = time.monotonic()
    if now - _asked_at.setdefault(submitted.job_id, now) < ASK_SLURM_SECONDS:
        return False
    _asked_at[submitted.job_id] = now
    return True


def _told(trace: str) -> tuple[int, str]:
    """Exit code and error of what a task has raised."""
    failed = re.search(rf"\b{JobFailed.__name__}: (\d+) (.*)", trace)
    if failed:
        return int(failed[1]), failed[2].strip()
    return 1, _last_line(trace.partition("with trace:")[2].rpartition("You can check full logs")[0] or trace)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip("- ")]
    return lines[-1] if lines else "no reason was given"
