"""Lightning's early stopping and kept checkpoints, driven by a run's own evaluations and steps.

A run is one epoch of Lightning's Trainer without its validation, and may have several sessions. So these callbacks are
not the Trainer's: their hooks are called here, after each evaluation and step and before last.ckpt, which holds what
they have seen so far.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    DeviceStatsMonitor,
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    OnExceptionCheckpoint,
)

from mixer_lightning.config.recipe import Recipe
from mixer_lightning.data.sources import Dataset
from mixer_lightning.engine.callbacks import StepCallback
from mixer_lightning.engine.classifier import Classifier
from mixer_lightning.evals import Eval, is_at_end, names_of
from mixer_lightning.screen import did_you_mean, last_line
from mixer_lightning.targets import build


def build_callbacks(recipe: Recipe, source: Dataset, evals: Mapping[str, Eval]) -> dict[str, Callback]:
    """The recipe's callbacks, which may wait for figures of `evals`.

    Raises:
        ValueError: one waits for what a run does not have, and would fail at its beginning or, worse, at its end.
    """
    found: dict[str, Callback] = {}
    for name, node in recipe.callbacks.items():
        try:
            found[name] = build(node)
        except MisconfigurationException as error:
            raise ValueError(f"callbacks.{name}: {last_line(error)}") from error
        if isinstance(found[name], LearningRateMonitor | DeviceStatsMonitor | OnExceptionCheckpoint):
            raise ValueError(
                f"callbacks.{name}: {type(found[name]).__name__} needs Lightning's own logger or checkpoints, and a "
                "run's log, rate and checkpoints are written without them. Leave it out"
            )
        monitor = getattr(found[name], "monitor", None)
        if monitor is not None:
            try:
                _check_monitor(str(monitor), source, evals)
            except ValueError as error:
                raise ValueError(f"callbacks.{name}.monitor: {error}") from error
    return found


def _check_monitor(monitor: str, source: Dataset, evals: Mapping[str, Eval]) -> None:
    """See that evaluations during training have a figure, and that what it decides may be decided by it.

    Of an evaluation that does not tell the names of its figures, the first one will.

    Raises:
        ValueError: there is none of that name, or it is one of test images.
    """
    split = monitor.partition("/")[0]
    cut = "train_split='train[:90%]' val_split='train[90%:]' makes a val split of training images"
    if split == "test":
        raise ValueError(
            f"'{monitor}' would choose by the test images, and no figure of them would be an estimate any more. Use "
            f"one of val{'' if 'val' in source.splits else f': {cut}'}"
        )
    if split == "val" and split not in source.splits:
        raise ValueError(f"{source.name} has no val split here: {cut}")
    names = {name: names_of(each, source) for name, each in evals.items()}
    late = [each for name, each in names.items() if is_at_end(evals[name])]
    there = [metric for name, each in names.items() if not is_at_end(evals[name]) for metric in each or []]
    if monitor not in there and any(monitor in (each or []) for each in late):
        raise ValueError(f"'{monitor}' is measured after the last step only (at_end)")
    if monitor not in there and None not in names.values():
        there = sorted(metric for metric in there if not metric.startswith("test/"))
        hint = did_you_mean(monitor, there) or "."
        raise ValueError(f"no metric '{monitor}'{hint} There are: {', '.join(there) or 'none'}")


def is_driven(callback: Callback) -> bool:
    """Whether it is not the Trainer's but called by DrivenCallbacks."""
    return isinstance(callback, EarlyStopping | ModelCheckpoint)


class DrivenCallbacks(StepCallback):
    """Calls those of `callbacks` that are EarlyStopping or ModelCheckpoint, by the names that the recipe gives them.

    `module.ended` becomes the reason when one of them has stopped the training. `states` are of an earlier session.
    """

    def __init__(
        self, callbacks: Mapping[str, Callback], *, start_step: int, states: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self.callbacks = {name: each for name, each in callbacks.items() if is_driven(each)}
        self.start_step, self.earlier = start_step, states
        for callback in self.callbacks.values():
            if isinstance(callback, EarlyStopping):
                callback._check_on_train_epoch_end = False  # both look after evaluations
            elif isinstance(callback, ModelCheckpoint):
                callback._save_on_train_epoch_end = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lightning's hook. The Trainer counts the steps of the whole run, by which checkpoints are kept and named."""
        steps = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total
        steps.ready = steps.completed = self.start_step
        for name, callback in self.callbacks.items():
            callback.setup(trainer, pl_module, stage)
            if name in self.earlier:  # not before: ModelCheckpoint asks whether its folder is the same
                callback.load_state_dict(dict(self.earlier[name]))

    def on_begin(self, trainer: Trainer, module: Classifier) -> None:
        """Start clocks."""
        for callback in self.callbacks.values():
            callback.on_train_start(trainer, module)

    def on_step(self, trainer: Trainer, module: Classifier) -> None:
        """Checkpoints by steps or time."""
        for callback in self.callbacks.values():
            callback.on_train_batch_end(trainer, module, None, None, 0)

    def on_metrics(self, trainer: Trainer, module: Classifier, values: Mapping[str, float]) -> None:
        """What follows from an evaluation.

        Raises:
            ValueError: a callback waits for a metric that there is not.
        """
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
        for name, callback in self.callbacks.items():
            monitor = callback.monitor  # type: ignore[attr-defined]
            if values and monitor is not None and monitor not in trainer.callback_metrics:
                raise ValueError(
                    f"callbacks.{name}.monitor: no metric '{monitor}', there are: {', '.join(sorted(values))}"
                )
            if monitor in values:
                callback.on_validation_end(trainer, module)
            if isinstance(callback, EarlyStopping) and callback.stopping_reason.value:
                module.ended = str(callback.stopping_reason_message).removesuffix(
                    " Signaling Trainer to stop."
                )

    def states(self) -> dict[str, dict[str, Any]]:
        """What the next session needs."""
        return {name: callback.state_dict() for name, callback in self.callbacks.items()}
