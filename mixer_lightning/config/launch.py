"""The jobs of a command line, one after the other: here, or wherever a launcher of Hydra's starts them."""

from __future__ import annotations

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

from mixer_lightning.config.compose import Composition, Job, chosen_files
from mixer_lightning.config.hydra_internals import is_plain, run_composed
from mixer_lightning.config.overrides import key_of
from mixer_lightning.config.recipe import AnyRecipe, load_recipe
from mixer_lightning.config.settle import settled
from mixer_lightning.files import CONF
from mixer_lightning.screen import refuse

STOPPED = 128  # exit codes above: asked to stop, so the rest of a sweep is not wanted either


def launch(
    config_name: str,
    composition: Composition[AnyRecipe],
    run: Callable[[AnyRecipe, Path], int],
    *,
    flags: Sequence[str],
    multirun: bool,
) -> list[int]:
    """Run all jobs; their exit codes, as far as they ran in this process.

    `flags` are those of the command line, for a launcher or sweeper other than Hydra's basic ones.
    """
    if not is_plain(composition.jobs[0].config):
        task = _Task(type(composition.jobs[0].recipe), run)
        _hydra_main(config_name, [*flags, f"hydra.job.name={config_name}", *composition.overrides], task)
        return task.codes
    codes = []
    with initialize_config_dir(str(CONF), job_name=config_name, version_base="1.3"):
        for job in composition.jobs:
            codes.append(_run_here(job, run, multirun=multirun))
            if codes[-1] > STOPPED:
                raise SystemExit(codes[-1])
    return codes


def _run_here(job: Job[AnyRecipe], run: Callable[[AnyRecipe, Path], int], *, multirun: bool) -> int:
    try:
        job.run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        refuse([f"cannot create the run directory: {error}. Choose another with hydra.run.dir=<folder>."])
    codes = []
    run_composed(job.config, multirun=multirun, task=lambda _: codes.append(run(job.recipe, _output_dir())))
    return codes[0]


def ask_hydra(config_name: str, argv: Sequence[str]) -> None:
    """Let Hydra show what its flags ask for: --cfg, --info, --hydra-help, --shell-completion."""
    _hydra_main(config_name, argv, lambda config: None)


def _hydra_main(config_name: str, argv: Sequence[str], task: Callable[[DictConfig], None]) -> None:
    sys.argv[1:] = argv
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach us, and not Hydra's own printer
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(task)()
    except HydraException as error:
        refuse([str(error)])
    except OSError as error:
        refuse([f"cannot create the run directory: {error}. Choose another with hydra.run.dir=<folder>."])


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
