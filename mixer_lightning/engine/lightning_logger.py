"""Lightning's own logging, for callbacks that log by themselves: their figures go where a run's metrics go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger

from mixer_lightning.engine.callbacks import MetricsLog
from mixer_lightning.engine.classifier import Classifier


class RunLogger(Logger):
    """Takes what Lightning's callbacks log (LearningRateMonitor, DeviceStatsMonitor, `module.log`) into metrics.jsonl.

    A row stands at the step that is being made; of the micro-batches of one step the first says each figure.
    """

    def __init__(self, metrics: MetricsLog) -> None:
        super().__init__()
        self.metrics = metrics
        self._step, self._said = -1, set[str]()

    @property
    def name(self) -> str:
        """No folder of its own."""
        return ""

    @property
    def version(self) -> str:
        """Nor one for a version."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run directory."""
        return str(self.metrics.run_dir)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """One row; Lightning counts the steps that are done."""
        number = 1 + (step or 0)
        if number != self._step:
            self._step, self._said = number, set()
        new = {name: float(value) for name, value in metrics.items() if name not in {*self._said, "epoch"}}
        self._said |= new.keys()
        if new:
            self.metrics.append(number, new)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: recipe.yaml says them."""


class RateOfNextStep(Callback):
    """Sets the learning rate of a step before it begins, so that what watches the optimiser sees it."""

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Lightning's hook."""
        assert isinstance(pl_module, Classifier)
        pl_module.set_rate()
