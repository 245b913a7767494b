"""What happens between steps: the log, evaluations, the progress bar.

They run in the order of the list that `training.py` makes: a checkpoint of a step follows its evaluation, so what a
checkpoint has seen is also in metrics.jsonl.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from mixer_lightning import results
from mixer_lightning.engine.classifier import Classifier
from mixer_lightning.engine.datamodule import DataModule
from mixer_lightning.engine.device import matrix_rate
from mixer_lightning.engine.inference import Predictions
from mixer_lightning.engine.memory import give_back, taken_bytes
from mixer_lightning.evals import Eval, is_at_end, metrics_of
from mixer_lightning.loggers.dashboards import Dashboards
from mixer_lightning.progress import Bar
from mixer_lightning.screen import Screen

#: From this share of the time on, the progress says that training waits for images.
SLOW_DATA = 0.1
#: For which a device multiplies matrices when a session begins.
PEAK_SECONDS = 0.1


class StepCallback(Callback):
    """Two moments of fitting: it begins, and an optimiser step is done."""

    def on_begin(self, trainer: Trainer, module: Classifier) -> None:
        """Everything is on its device and restored; the first step comes next."""

    def on_step(self, trainer: Trainer, module: Classifier) -> None:
        """`module.step` steps are done; not called after the micro-batches in between."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning's hook."""
        assert isinstance(pl_module, Classifier)
        self.on_begin(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Lightning's hook."""
        assert isinstance(pl_module, Classifier)
        if (batch_idx + 1) % pl_module.micro_batches.accumulate == 0:
            self.on_step(trainer, pl_module)


class MetricsLog(StepCallback):
    """Writes metrics.jsonl and feeds the dashboards: every `every_steps` steps, and whatever others `write`."""

    def __init__(
        self,
        run_dir: Path,
        *,
        every_steps: int,
        total_steps: int,
        steps_per_epoch: float,
        num_devices: int,
        dashboards: Dashboards,
        seconds_waited: Callable[[], float] = float,
        macs: int | None = None,
    ) -> None:
        self.run_dir, self.every_steps, self.total_steps = run_dir, every_steps, total_steps
        self.steps_per_epoch, self.num_devices, self.dashboards = steps_per_epoch, num_devices, dashboards
        self.seconds_waited = seconds_waited  # for images, since the session began
        self.macs = macs  # multiply-accumulates that an image in training takes; None: no MFU
        self._peak: float | None = None  # of a device in a second
        self.latest: dict[str, float] = {}
        self.train_seconds = 0.0  # of all sessions, without evaluations and checkpoints
        self.device_seconds = 0.0  # the same, times the devices of each session
        self.steps_timed = 0
        self._window_seconds = 0.0
        self._window_steps = 0
        self._waited_before = 0.0
        self._since = time.perf_counter()

    def on_begin(self, trainer: Trainer, module: Classifier) -> None:
        """See what a device can do, and start the clock."""
        if self.macs is not None and module.machine.rank == 0:
            self._peak = matrix_rate(module.machine, at_least=PEAK_SECONDS)
            give_back(module.machine)
        self._since = time.perf_counter()

    def on_step(self, trainer: Trainer, module: Classifier) -> None:
        """One row of training metrics every so many steps."""
        self.pause()
        self._window_steps += 1
        self.steps_timed += 1
        if module.step % self.every_steps == 0 or module.step == self.total_steps:
            row = module.accumulator.read()  # waits for the device: the clock must see that
            self.pause()
            self.write(trainer, module.step, row | {results.LEARNING_RATE: module.lr} | self._pace(module))
            self._window_seconds, self._window_steps = 0.0, 0

    def _pace(self, module: Classifier) -> dict[str, float]:
        """Images per second since the last row, the share of that time that images were waited for, memory, days.

        And model FLOPs utilisation: multiply-accumulates of the model, without what is computed anew, of those that
        as many devices would do of products of large matrices, as one of them did when the session began.
        """
        seconds = max(self._window_seconds, 1e-9)
        waited = self.seconds_waited()
        found = {
            results.IMAGES_PER_SECOND: self._window_steps * module.micro_batches.batch_size / seconds,
            results.DATA_WAIT: min(1.0, (waited - self._waited_before) / seconds),
            results.DEVICE_DAYS: self.device_seconds / 86400,
        }
        self._waited_before = waited
        if self._peak is not None and self.macs is not None:
            done = found[results.IMAGES_PER_SECOND] * self.macs
            found[results.MFU] = done / (self._peak * self.num_devices)
        taken = taken_bytes(module.machine)
        return found | ({} if taken is None else {results.MEMORY_GB: taken / 1e9})

    def pause(self) -> None:
        """Add the time since the last call to the training time."""
        now = time.perf_counter()
        self.train_seconds += now - self._since
        self.device_seconds += (now - self._since) * self.num_devices
        self._window_seconds += now - self._since
        self._since = now

    @property
    def device_time(self) -> dict[str, float]:
        """Devices, and the days of one device that the training took, as a result says it."""
        return {"num_devices": self.num_devices, "device_days": round(self.device_seconds / 86400, 9)}

    def resume(self) -> None:
        """Forget the time since the last call: it was not training."""
        self._since = time.perf_counter()

    def write(self, trainer: Trainer, step: int, row: Mapping[str, float]) -> None:
        """One line of metrics.jsonl and one point on every dashboard, which the result may end with."""
        self.latest |= row
        if trainer.global_rank == 0:
            self.append(step, row)

    def append(self, step: int, row: Mapping[str, float]) -> None:
        """The same of figures that are not the result's; by the first process."""
        epoch = round(step / self.steps_per_epoch, 4)
        results.append_metrics(self.run_dir, {"step": step, "epoch": epoch, **row})
        self.dashboards.log_metrics(step, {"epoch": epoch, **row})


class EvaluationStopped(Exception):
    """The run was asked to stop in the middle of an evaluation."""


class Evaluations(StepCallback):
    """Runs the recipe's evaluations every `every_steps` steps and after the last one.

    Where the run is asked to stop, an evaluation is broken off after the batch, and made anew when the run goes on.

    Args:
        is_asked_to_stop: whether any process was; all of them ask equally often.
        on_batch: hears how far a pass over images is: what, batches done, batches in all.
    """

    def __init__(
        self,
        evals: Mapping[str, Eval],
        *,
        every_steps: int,
        total_steps: int,
        data: DataModule,
        metrics: MetricsLog,
        is_asked_to_stop: Callable[[], bool],
        on_batch: Callable[[str, int, int], None],
    ) -> None:
        self.evals, self.every_steps, self.total_steps = evals, every_steps, total_steps
        self.data, self.metrics = data, metrics
        self.is_asked_to_stop, self.on_batch = is_asked_to_stop, on_batch
        self.listeners: list[Callable[[Trainer, Classifier, dict[str, float]], None]] = []

    def on_step(self, trainer: Trainer, module: Classifier) -> None:
        """Evaluate if it is time."""
        last = module.step == self.total_steps
        late = {name: each for name, each in self.evals.items() if is_at_end(each)}
        due = {name: each for name, each in self.evals.items() if last or name not in late}
        if module.ended is None and due and (last or module.step % self.every_steps == 0):
            values = self._evaluate(trainer, module, due)
            if values is None:
                return
            for listener in self.listeners:
                listener(trainer, module, values)
            self.metrics.resume()
            if last:
                module.ended = None  # no early stop
        if module.ended is not None:  # what waits for the end, which is here
            trainer.should_stop = True
            self._evaluate(trainer, module, late)

    def _evaluate(
        self, trainer: Trainer, module: Classifier, evals: Mapping[str, Eval]
    ) -> dict[str, float] | None:
        """Values, also written into the log; None where the run was asked to stop."""
        module.evaluation_due = bool(evals)
        self.metrics.pause()
        try:
            values = self.run(module, evals)
        except EvaluationStopped:
            return None
        finally:
            self.metrics.resume()
        module.evaluation_due = False
        if values:
            self.metrics.write(trainer, module.step, values)
        return values

    def run(self, module: Classifier, evals: Mapping[str, Eval]) -> dict[str, float]:
        """All metrics of some evaluations.

        Raises:
            EvaluationStopped: the run was asked to stop.
        """
        with module.evaluating() as network:
            folder = self.metrics.run_dir if module.machine.rank == 0 else None
            predict = Predictions(
                network,
                self.data,
                device=module.device,
                folder=folder,
                criterion=module.loss,
                on_batch=self._on_batch,
            )
            found = [metrics_of(name, each, predict) for name, each in evals.items()]
            return {metric: value for metrics in found for metric, value in metrics.items()}

    def _on_batch(self, what: str, done: int, total: int) -> None:
        self.on_batch(what, done, total)
        if self.is_asked_to_stop():
            raise EvaluationStopped


class Progress(StepCallback):
    """Shows how far the run is, after every micro-batch, and a line with every evaluation."""

    def __init__(
        self, screen: Screen, metrics: MetricsLog, *, total_steps: int, steps_per_epoch: float
    ) -> None:
        self.screen, self.metrics = screen, metrics
        self.total_steps, self.steps_per_epoch = total_steps, steps_per_epoch
        self._bar: Bar | None = None
        self._done = 0.0

    def on_begin(self, trainer: Trainer, module: Classifier) -> None:
        """Start the bar."""
        self._done = module.step
        self._bar = Bar(
            self.screen, total=self.total_steps, done=module.step, label=self._position(module.step)
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Lightning's hook: move the bar, also by parts of a step."""
        assert isinstance(pl_module, Classifier)
        assert self._bar is not None
        accumulate = pl_module.micro_batches.accumulate
        self._done = pl_module.step + (batch_idx + 1) % accumulate / accumulate
        self._bar.move(
            self._done, label=self._position(self._done), parts=format_progress(self.metrics.latest)
        )

    def on_evaluation(self, what: str, done: int, total: int) -> None:
        """So many batches of a pass over images are done."""
        if self._bar is not None:
            self._bar.move(
                self._done,
                parts=[f"evaluating {what} {done:,}/{total:,}", *format_progress(self.metrics.latest)],
            )

    def on_metrics(self, trainer: Trainer, module: Classifier, values: Mapping[str, float]) -> None:
        """One line per evaluation, which stays."""
        numbers = "  ".join(format_progress({**self.metrics.latest, **values}))
        self.screen.say(f"{self._position(module.step)}  {numbers}")
        if self._bar is not None:
            self._bar.said()

    def _position(self, step: float) -> str:
        epochs = self.total_steps / self.steps_per_epoch
        if epochs >= 2:
            return f"epoch {step / self.steps_per_epoch:,.1f}/{f'{epochs:,.1f}'.removesuffix('.0')}"
        return f"step {int(step):,}/{self.total_steps:,}"


def format_progress(metrics: Mapping[str, float]) -> list[str]:
    """'loss 0.61', 'val/top1 98.3 %', 'train/top1 97.1 %', '3,100 images/s': what matters most comes first."""
    parts = [f"loss {metrics[results.TRAIN_LOSS]:.4g}"] if results.TRAIN_LOSS in metrics else []
    accuracies = [name for name in metrics if name.endswith("/top1")]
    parts += [
        f"{name} {100 * metrics[name]:.1f} %"
        for name in sorted(accuracies, key=lambda name: name == results.TRAIN_TOP1)
    ]
    if results.IMAGES_PER_SECOND in metrics:
        parts.append(f"{metrics[results.IMAGES_PER_SECOND]:,.0f} images/s")
    if results.MFU in metrics:
        parts.append(f"MFU {100 * metrics[results.MFU]:.0f} %")
    if metrics.get(results.DATA_WAIT, 0.0) >= SLOW_DATA:
        parts.append(f"{100 * metrics[results.DATA_WAIT]:.0f} % waiting for images")
    return parts
