"""The dashboards of a run, never in the way of training."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from mixer_lightning.loggers import wandb as wandb_dashboard


class Dashboards:
    """The dashboards of a run. One that fails says so, once, and is left out from there on."""

    def __init__(self, makers: Mapping[str, Callable[[], Logger]], *, say: Callable[[str], None]) -> None:
        self.makers, self.say = makers, say
        self.loggers: dict[str, Logger] = {}

    def open(self) -> None:
        """Connect to them."""
        for name, make in self.makers.items():
            self._try(name, lambda name=name, make=make: self.loggers.update({name: make()}))  # type: ignore[misc]

    def log_recipe(self, recipe: dict[str, Any]) -> None:
        """The hyper-parameters of the run."""
        self._each(lambda logger: logger.log_hyperparams(recipe))

    def log_metrics(self, step: int, row: dict[str, float]) -> None:
        """One point per metric."""
        self._each(lambda logger: logger.log_metrics(row, step))

    def log_report(self, tables: Mapping[str, Sequence[Sequence[str]]], pictures: Mapping[str, Path]) -> None:
        """The tables of a finished run, whose first row names the columns, and its pictures, where W&B shows such."""
        self._each(lambda logger: _log_report(logger, tables, pictures))

    def log_confusion(self, path: Path) -> None:
        """The confusion matrix of a confusion.npz, and the misjudged images, where W&B shows such."""
        self._each(lambda logger: _log_confusion(logger, path))

    def advise(self, run_dir: Path) -> None:
        """Say where each is to be seen."""
        self._each(lambda logger: self.say(_advice(logger, run_dir)))

    def close(self, exit_code: int = 0) -> None:
        """Close them for good, or the next job of a sweep would log into the same W&B run.

        They show a run whose `exit_code` is not 0 as failed: it has no result yet.
        """
        self._each(lambda logger: _finish(logger, exit_code))
        self.loggers.clear()

    def _each(self, use: Callable[[Logger], None]) -> None:
        for name, logger in list(self.loggers.items()):
            self._try(name, lambda logger=logger: use(logger))  # type: ignore[misc]

    def _try(self, name: str, use: Callable[[], None]) -> None:
        try:
            use()
        except Exception as error:  # weeks of training must not end because a dashboard is out of reach
            lost = self.loggers.pop(name, None)
            self.say(f"logger.{name} failed and is left out from here on: {error}")
            with contextlib.suppress(Exception):
                _disconnect(lost)


def _log_report(
    logger: Logger, tables: Mapping[str, Sequence[Sequence[str]]], pictures: Mapping[str, Path]
) -> None:
    if isinstance(logger, WandbLogger):
        wandb_dashboard.log_report(logger, tables, pictures)


def _log_confusion(logger: Logger, path: Path) -> None:
    if isinstance(logger, WandbLogger):
        wandb_dashboard.log_confusion(logger, path)


def _advice(logger: Logger, run_dir: Path) -> str:
    """What a user does to see the dashboard, in one line."""
    if isinstance(logger, TensorBoardLogger):
        return f"tensorboard --logdir {shlex.quote(str(run_dir))}"
    if isinstance(logger, WandbLogger):
        return wandb_dashboard.where(logger)
    return f"logging to {type(logger).__name__}"


def _finish(logger: Logger, exit_code: int) -> None:
    try:
        logger.finalize("success" if exit_code == 0 else "failed")
    finally:
        _disconnect(logger, exit_code)


def _disconnect(logger: Logger | None, exit_code: int = 0) -> None:
    if isinstance(logger, WandbLogger):
        wandb_dashboard.disconnect(exit_code)
