"""What Hydra keeps in private modules, with explicit signatures. No other file enters them (hydra-core 1.3.8)."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Sequence
from itertools import pairwise
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_launcher import BasicLauncherConf
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import run_job
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from mixer_lightning.config.arguments import is_path
from mixer_lightning.config.elsewhere import meant
from mixer_lightning.screen import did_you_mean, refuse


def parse_flags(argv: Sequence[str], keys: Collection[str] = ()) -> argparse.Namespace:
    """Hydra's flags (`multirun`, `cfg`, `config_dir`, ...) and the other arguments as `overrides`.

    `keys` are the root keys of the program, for what was meant by an unknown flag.

    Ends the program with exit code 2 where a flag is unknown.
    """
    parser = get_args_parser()
    known = [option for option in parser._option_string_actions if option.startswith("--")]
    for argument, after in pairwise([*argv, ""]):
        flag, equals, value = argument.partition("=")
        if flag.startswith("--") and flag not in known:
            value = value if equals else (after if is_path(after, keys) else "")
            root = flag[2:].partition(".")[0]
            hint = f": write {flag[2:]}={value}" if root in keys else meant(flag, value, keys)
            refuse([f"unknown option '{flag}'{hint or did_you_mean(flag, known)}"])
    parser.exit_on_error = False
    try:
        flags: argparse.Namespace = parser.parse_intermixed_args(list(argv))
    except argparse.ArgumentError as error:
        refuse([str(error).removeprefix("argument ")])
    return flags


def split_sweep(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of every job of a sweep, in the order of Hydra's basic sweeper; inside `initialize_config_dir`.

    Raises:
        HydraException: an override is not of Hydra's grammar.
    """
    loader = GlobalHydra.instance().config_loader()
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
    return [list(job) for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]


def is_plain(config: DictConfig) -> bool:
    """Whether a composed config leaves launcher, sweeper and callbacks as Hydra has them by default."""
    return has_plain_launcher(config) and has_plain_sweeper(config)


def has_plain_launcher(config: DictConfig) -> bool:
    """Whether the jobs of a sweep run here, one after the other."""
    return bool(config.hydra.launcher._target_ == BasicLauncherConf._target_)


def has_plain_sweeper(config: DictConfig) -> bool:
    """Whether nothing of Hydra's but a launcher decides what becomes of a sweep."""
    return bool(
        config.hydra.sweeper == OmegaConf.structured(BasicSweeperConf)
        and not config.hydra.callbacks
        and config.hydra.mode is None
    )


def run_composed(config: DictConfig, *, multirun: bool, task: Callable[[DictConfig], Any]) -> None:
    """Call `task` as Hydra's basic launcher does, in the run directory's name; inside `initialize_config_dir`.

    What the task raises is raised.
    """
    loader = GlobalHydra.instance().config_loader()
    done = run_job(
        task_function=task,
        config=config,
        job_dir_key="hydra.sweep.dir" if multirun else "hydra.run.dir",
        job_subdir_key="hydra.sweep.subdir" if multirun else None,
        hydra_context=HydraContext(config_loader=loader, callbacks=Callbacks()),
    )
    _ = done.return_value  # raises what the task raised
