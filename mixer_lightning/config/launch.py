"""The jobs of a command line, one after the other: here, or wherever a launcher of Hydra's starts them."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic

import hydra
from hydra import initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from mixer_lightning.children import Child, num_processes
from mixer_lightning.config.compose import Composition, Job, chosen_files
from mixer_lightning.config.hydra_internals import (
    has_plain_launcher,
    has_plain_sweeper,
    is_plain,
    run_composed,
)
from mixer_lightning.config.overrides import key_of, quoted
from mixer_lightning.config.recipe import AnyRecipe, load_recipe
from mixer_lightning.config.settle import settled
from mixer_lightning.config.submit import cluster_of, submit
from mixer_lightning.files import CONF
from mixer_lightning.screen import LAST_SAID, error_in, refuse
from mixer_lightning.stopping import StopRequests, exit_code

STOPPED = 128  # exit codes above: asked to stop, so the rest of a sweep is not wanted either


def launch(
    config_name: str,
    composition: Composition[AnyRecipe],
    run: Callable[[AnyRecipe, Path], int],
    *,
    flags: Sequence[str],
    multirun: bool,
    errors: dict[Path, str],
) -> list[int]:
    """Run all jobs; their exit codes, as far as they ran in this process.

    A job of a sweep that has several processes is a child, started by torchrun. `errors` gets what jobs that failed
    have said. `flags` are those of the command line, for such children, and for other launchers and sweepers of Hydra.
    """
    first = composition.jobs[0].config
    if not (multirun or first.hydra.mode or has_plain_launcher(first)):
        refuse(["hydra/launcher starts the jobs of a sweep: add -m (--multirun)"])
    cluster = cluster_of(first)
    if cluster is not None and multirun:
        if not has_plain_sweeper(first):
            keys = "hydra.sweeper, hydra.callbacks and hydra.mode"
            refuse([f"hydra/launcher=submitit_{cluster} has no part for {keys}: leave them as they are"])
        stated = {key_of(line) for line in composition.overrides}
        run_job = functools.partial(_run_submitted, config_name, run)
        return submit(composition.jobs, run_job, cluster=cluster, stated=stated, errors=errors)
    if not is_plain(first):
        task = _Task(type(composition.jobs[0].recipe), run)
        _hydra_main(config_name, [*flags, f"hydra.job.name={config_name}", *composition.overrides], task)
        return task.codes
    codes = []
    counts = [_num_processes(job) if multirun else 1 for job in composition.jobs]
    with initialize_config_dir(str(CONF), job_name=config_name, version_base="1.3"):
        for job, count in zip(composition.jobs, counts, strict=True):
            LAST_SAID.clear()
            work = run if count == 1 else functools.partial(_run_child, config_name, job, count, flags)
            codes.append(_run_here(job, work, multirun=multirun))
            if codes[-1]:
                errors[job.run_dir] = error_in(LAST_SAID)
            if codes[-1] > STOPPED:
                raise SystemExit(codes[-1])
    return codes


def _num_processes(job: Job[AnyRecipe]) -> int:
    try:
        return num_processes(job.recipe.trainer)
    except ValueError as error:
        refuse([str(error)])


def _run_child(
    config_name: str,
    job: Job[AnyRecipe],
    count: int,
    flags: Sequence[str],
    recipe: AnyRecipe,
    run_dir: Path,
) -> int:
    """A job in `count` processes of its own; its exit code. Asked to stop, it asks them and waits."""
    task: list[str] = [line for line in job.config.hydra.overrides.task if "from_checkpoint" not in line]
    folder: list[str] = [flag for flag in flags if flag.startswith("--config-dir=")]

    def hear(line: str) -> None:
        LAST_SAID.append(line)
        print(line, flush=True)

    requests = StopRequests(lambda text: print(text, flush=True), first="stopping the job", quitting=str)
    argv = [config_name, *folder, *task, f"hydra.run.dir={quoted(str(run_dir.absolute()))}"]
    child = Child(argv, processes=count, hear=hear)
    with requests:
        requests.catch()
        code = child.wait(requests)
    return exit_code(requests.received) if requests.received else code


def _run_here(job: Job[AnyRecipe], run: Callable[[AnyRecipe, Path], int], *, multirun: bool) -> int:
    try:
        job.run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        key = "hydra.sweep.dir" if multirun else "hydra.run.dir"
        refuse([f"cannot create the run directory: {error}. Choose another with {key}=<folder>."])
    codes = []
    run_composed(job.config, multirun=multirun, task=lambda _: codes.append(run(job.recipe, _output_dir())))
    return codes[0]


def _run_submitted(config_name: str, run: Callable[[AnyRecipe, Path], int], job: Job[AnyRecipe]) -> int:
    """A job in a process of its own, as it was composed by the one that submitted it."""
    with initialize_config_dir(str(CONF), job_name=config_name, version_base="1.3"):
        return _run_here(job, run, multirun=True)


def ask_hydra(config_name: str, argv: Sequence[str]) -> None:
    """Let Hydra show what its flags ask for: --cfg, --info, --hydra-help, --shell-completion."""
    try:
        _hydra_main(config_name, argv, lambda config: None)
    except ValueError as error:  # of --shell-completion
        refuse([str(error)])


def _hydra_main(config_name: str, argv: Sequence[str], task: Callable[[DictConfig], None]) -> None:
    sys.argv[1:] = argv
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach us, and not Hydra's own printer
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(task)()
    except HydraException as error:
        refuse([str(error)])
    except OSError as error:
        key = "hydra.sweep.dir" if {"-m", "--multirun"} & set(argv) else "hydra.run.dir"
        refuse([f"cannot create the run directory: {error}. Choose another with {key}=<folder>."])


@dataclass
class _Task(Generic[AnyRecipe]):
    """What Hydra calls with a composed config; a class of this module, for launchers that pickle it."""

    root: type[AnyRecipe]
    run: Callable[[AnyRecipe, Path], int]
    codes: list[int] = field(default_factory=list)

    def __call__(self, config: DictConfig) -> None:
        values = OmegaConf.to_container(config, resolve=True)
        assert isinstance(values, dict)
        choices = chosen_files(HydraConfig.get().runtime.choices)
        stated = {key_of(line) for line in HydraConfig.get().overrides.task}
        plain = settled({str(key): value for key, value in values.items()}, stated=stated, choices=choices)
        recipe = load_recipe(self.root, {**plain, "choices": choices})
        self.codes.append(self.run(recipe, _output_dir()))
        if self.codes[-1] > STOPPED:
            raise SystemExit(self.codes[-1])


def _output_dir() -> Path:
    """The directory of the job that runs, from where it runs."""
    return Path(os.path.relpath(HydraConfig.get().runtime.output_dir))
