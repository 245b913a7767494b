"""Lightning's callbacks in a run, which is one epoch of its Trainer without validation, and may have several sessions.

Early stopping and kept checkpoints are driven by a run's own evaluations and steps: they are not the Trainer's, their
hooks are called here, after each evaluation and step and before last.ckpt. Others are the Trainer's, and hear of
evaluations here. last.ckpt holds the state of all. What would count the Trainer's epochs, or do what a run does
already, is refused.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BasePredictionWriter,
    BatchSizeFinder,
    DeviceStatsMonitor,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    OnExceptionCheckpoint,
    ProgressBar,
    StochasticWeightAveraging,
    Timer,
    WeightAveraging,
)
from lightning.pytorch.callbacks.throughput_monitor import ThroughputMonitor

from mixer_lightning.config.recipe import Recipe
from mixer_lightning.data.sources import Dataset
from mixer_lightning.engine.callbacks import StepCallback
from mixer_lightning.engine.classifier import Classifier
from mixer_lightning.evals import Eval, is_at_end, names_of
from mixer_lightning.screen import did_you_mean, last_line
from mixer_lightning.targets import build

#: What a run cannot honour, and what does the same here.
INSTEAD: dict[type[Callback], str] = {
    StochasticWeightAveraging: "ema_decay=0.999 averages the weights at every step; this waits for Lightning's epochs, "
    "of which a run is one",
    WeightAveraging: "ema_decay=0.999 averages the weights at every step, and evaluates, keeps and resumes the average",
    GradientAccumulationScheduler: "gradients are accumulated from device_batch to batch_size, which stays",
    BatchSizeFinder: "device_batch=auto finds the largest that fits a GPU, and batch_size stays",
    LearningRateFinder: "try several rates: -m optimizer.lr=0.001,0.003",
    BaseFinetuning: "freeze=[backbone], or parts of it, trains the rest alone; this waits for Lightning's epochs, of "
    "which a run is one",
    ModelPruning: "it prunes after Lightning's epochs, of which a run is one, so after the last checkpoint",
    ProgressBar: "a run shows its progress itself",
    OnExceptionCheckpoint: "last.ckpt is kept whatever happens; checkpoint_minutes=10 saves more often",
    BasePredictionWriter: "mixer predict classifies images",
    ThroughputMonitor: "train/images_per_second is written always",
}
#: Hooks of passes over data that a run does not make with Lightning's Trainer.
NEVER_CALLED = ("test", "predict", "sanity_check", "validation_batch", "save_checkpoint", "load_checkpoint")


def build_callbacks(
    recipe: Recipe,
    source: Dataset,
    evals: Mapping[str, Eval],
    *,
    device_type: str,
    say: Callable[[str], None],
) -> dict[str, Callback]:
    """The recipe's callbacks, which may wait for figures of `evals`; `say` hears of hooks that will not be called.

    Raises:
        ValueError: one waits for what a run does not have, and would fail at its beginning or, worse, at its end.
    """
    found: dict[str, Callback] = {}
    for name, node in recipe.callbacks.items():
        try:
            found[name] = build(node)
        except (MisconfigurationException, ModuleNotFoundError) as error:
            raise ValueError(f"callbacks.{name}: {last_line(error)}") from error
        _check_kind(name, found[name], device_type, say)
        monitor = getattr(found[name], "monitor", None)
        if monitor is not None:
            try:
                _check_monitor(str(monitor), source, evals)
            except ValueError as error:
                raise ValueError(f"callbacks.{name}.monitor: {error}") from error
    return found


def _check_kind(name: str, callback: object, device_type: str, say: Callable[[str], None]) -> None:
    """Refuse what a run cannot honour; name the hooks of a user's own callback that it will not call.

    Raises:
        ValueError: the sentence says what does the same.
    """
    kind = type(callback).__name__
    if not isinstance(callback, Callback):
        raise ValueError(f"callbacks.{name}: {kind} is no callback of Lightning (lightning.pytorch.Callback)")
    for refused, instead in INSTEAD.items():
        if isinstance(callback, refused):
            raise ValueError(f"callbacks.{name}: {kind} does not work here: {instead}")
    if isinstance(callback, DeviceStatsMonitor) and importlib.util.find_spec("psutil") is None:
        wants_cpu = callback._cpu_stats
        if wants_cpu or (wants_cpu is None and device_type == "cpu"):
            raise ValueError(
                f"callbacks.{name}: {kind} needs psutil for figures of the CPU: pip install psutil"
            )
    if isinstance(callback, ModelCheckpoint):
        _check_when(name, callback)
    if isinstance(callback, LearningRateMonitor):
        if callback.logging_interval == "epoch":
            raise ValueError(
                f"callbacks.{name}.logging_interval: a run is one of Lightning's epochs: use step, which writes every "
                "log_every_steps"
            )
        callback.logging_interval = "step"  # of None it would write a row whenever a session begins
    if type(callback).__module__.startswith("lightning."):
        return
    _refuse_unreadable(name, callback.state_dict())
    hooks = [hook for hook in vars(Callback) if hook.startswith(tuple(f"on_{each}" for each in NEVER_CALLED))]
    own = [hook for hook in hooks if getattr(type(callback), hook) is not getattr(Callback, hook)]
    if own:
        say(f"callbacks.{name}: {', '.join(own)} will not be called: a run evaluates and saves by itself")


def _check_when(name: str, callback: ModelCheckpoint) -> None:
    """Refuse checkpoints that would never be kept, or ranked by the evaluation of another step.

    Raises:
        ValueError: the sentence says which words do.
    """
    by_steps = bool(callback._every_n_train_steps or callback._train_time_interval)
    if (callback.every_n_epochs or 0) > 1:
        raise ValueError(
            f"callbacks.{name}.every_n_epochs: a run is one of Lightning's epochs: use every_n_train_steps"
        )
    if callback.monitor is not None and by_steps:
        raise ValueError(
            f"callbacks.{name}.monitor: '{callback.monitor}' is known after evaluations (eval_every), and these "
            "checkpoints are of other steps. Use every_n_train_steps=null and no train_time_interval, or monitor=null"
        )
    if callback.monitor is None and not by_steps:
        raise ValueError(
            f"callbacks.{name}: nothing says when to keep a checkpoint: use every_n_train_steps=1000, or "
            "monitor=val/top1, which keeps those of evaluations"
        )


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

    All others hear of evaluations, and have their states kept.

    `module.ended` becomes the reason when one of them has stopped the training. `states` are of an earlier session.
    """

    def __init__(
        self, callbacks: Mapping[str, Callback], *, start_step: int, states: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self.callbacks = {name: each for name, each in callbacks.items() if is_driven(each)}
        self.others = {name: each for name, each in callbacks.items() if not is_driven(each)}
        self.start_step, self.earlier = start_step, states
        for callback in self.callbacks.values():
            if isinstance(callback, EarlyStopping):
                callback._check_on_train_epoch_end = False  # both look after evaluations
            elif isinstance(callback, ModelCheckpoint):
                callback._save_on_train_epoch_end = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lightning's hook. The Trainer counts the steps of the whole run, by which checkpoints are kept and named."""
        trainer.fit_loop.epoch_loop._batches_that_stepped = self.start_step
        steps = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total
        steps.ready = steps.completed = self.start_step
        for name, callback in self.callbacks.items():
            callback.setup(trainer, pl_module, stage)
            if name in self.earlier:  # not before: ModelCheckpoint asks whether its folder is the same
                callback.load_state_dict(dict(self.earlier[name]))
        for name, callback in self.others.items():
            if self.earlier.get(name) and not isinstance(callback, Timer):  # or it had no time left
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
        for callback in self.others.values() if values else ():
            callback.on_validation_epoch_end(trainer, module)
            callback.on_validation_end(trainer, module)

    def states(self) -> dict[str, dict[str, Any]]:
        """What the next session needs."""
        return {name: each.state_dict() for name, each in (self.callbacks | self.others).items()}


def _refuse_unreadable(name: str, state: Mapping[str, Any]) -> None:
    """ValueError where a state holds more than last.ckpt is read for: plain containers, numbers, texts and tensors."""
    file = io.BytesIO()
    try:
        torch.save(state, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception as error:
        raise ValueError(
            f"callbacks.{name}: its state_dict() holds what a checkpoint is not read for. Let it return plain "
            "containers, numbers, texts and tensors"
        ) from error
