"""What happens between steps: the log, evaluations, checkpoints, the progress bar, being asked to stop.

They run in the order of the list that `training.py` makes: a checkpoint of a step follows its evaluation, so what a
checkpoint has seen is also in metrics.jsonl.
"""

from __future__ import annotations

import datetime
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from mixer_lightning import results
from mixer_lightning.data.crops import Integers
from mixer_lightning.data.loader import Batch, Loader
from mixer_lightning.data.transforms import Augment
from mixer_lightning.engine.classifier import Classifier, Network, is_distributed
from mixer_lightning.engine.datamodule import DataModule
from mixer_lightning.evals import Eval, Resize
from mixer_lightning.files import atomic_write
from mixer_lightning.loggers.dashboards import Dashboards
from mixer_lightning.screen import Screen


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


class Metrics(StepCallback):
    """Writes metrics.jsonl and feeds the dashboards: every `every_steps` steps, and whatever others `write`."""

    def __init__(
        self,
        run_dir: Path,
        *,
        every_steps: int,
        total_steps: int,
        steps_per_epoch: float,
        dashboards: Dashboards,
    ) -> None:
        self.run_dir, self.every_steps, self.total_steps = run_dir, every_steps, total_steps
        self.steps_per_epoch, self.dashboards = steps_per_epoch, dashboards
        self.latest: dict[str, float] = {}
        self.train_seconds = 0.0  # of all sittings, without evaluations and checkpoints
        self.steps_timed = 0
        self._window_seconds = 0.0
        self._window_steps = 0
        self._since = time.perf_counter()

    def on_begin(self, trainer: Trainer, module: Classifier) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def on_step(self, trainer: Trainer, module: Classifier) -> None:
        """One row of training metrics per window."""
        self.pause()
        self._window_steps += 1
        self.steps_timed += 1
        if module.step % self.every_steps == 0 or module.step == self.total_steps:
            row = module.window.read()  # waits for the device: the clock must see that
            self.pause()
            rate = self._window_steps * module.micro_batches.batch_size / max(self._window_seconds, 1e-9)
            self.write(trainer, module.step, row | {"train/lr": module.lr, "train/images_per_second": rate})
            self._window_seconds, self._window_steps = 0.0, 0

    def pause(self) -> None:
        """Add the time since the last call to the training time."""
        now = time.perf_counter()
        self.train_seconds += now - self._since
        self._window_seconds += now - self._since
        self._since = now

    def resume(self) -> None:
        """Forget the time since the last call: it was not training."""
        self._since = time.perf_counter()

    def write(self, trainer: Trainer, step: int, row: Mapping[str, float]) -> None:
        """One line of metrics.jsonl and one point on every dashboard."""
        self.latest |= row
        if trainer.global_rank != 0:
            return
        epoch = round(step / self.steps_per_epoch, 4)
        results.append_metrics(self.run_dir, {"step": step, "epoch": epoch, **row})
        self.dashboards.log_metrics(step, {"epoch": epoch, **row})


class Evaluations(StepCallback):
    """Runs the recipe's evaluations every `every_steps` steps and after the last one."""

    def __init__(
        self,
        evals: Mapping[str, Eval],
        *,
        every_steps: int,
        total_steps: int,
        data: DataModule,
        metrics: Metrics,
    ) -> None:
        self.evals, self.every_steps, self.total_steps = evals, every_steps, total_steps
        self.data, self.metrics = data, metrics
        self.listeners: list[Callable[[Trainer, Classifier, dict[str, float]], None]] = []

    def on_step(self, trainer: Trainer, module: Classifier) -> None:
        """Evaluate if it is time."""
        last = module.step == self.total_steps
        due = self.evals if last else {name: each for name, each in self.evals.items() if not each.at_end}
        if due and (last or module.step % self.every_steps == 0):
            self.metrics.pause()
            values = self.run(module, due)
            if values:
                self.metrics.write(trainer, module.step, values)
            for listener in self.listeners:
                listener(trainer, module, values)
            self.metrics.resume()

    def run(self, module: Classifier, evals: Mapping[str, Eval]) -> dict[str, float]:
        """All metrics of some evaluations."""
        with module.evaluating() as network:
            folder = self.metrics.run_dir if module.rank == 0 else None
            predict = Predictions(network, self.data, device=module.device, folder=folder)
            return dict(pair for evaluation in evals.values() for pair in evaluation.run(predict))


class Predictions:
    """The `Predict` that evaluations see: a network over the splits of a data module."""

    def __init__(
        self, network: Network, module: DataModule, *, device: torch.device, folder: Path | None
    ) -> None:
        self.network, self.module, self.data = network, module, module.source
        self.device, self.folder = device, folder

    def local_indices(self, split: str) -> Integers:
        """Indices [n] of this process's images, in the order of `logits`."""
        images = self.module.eval_plan(len(self.data.splits[split])).images
        return np.arange(images.start, images.stop, images.step)

    def logits(self, split: str, *, eval_resize: Resize | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches (logits [B, K], labels) of this process's share of a split."""
        augment = self._augment(eval_resize=eval_resize)
        yield from self._batches(self.module.eval_loader(split, augment), self.network)

    def features(
        self,
        split: str,
        *,
        eval_resize: Resize | None = None,
        eval_crop: float | None = None,
        indices: Integers | None = None,
        mark_bad: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches (features [B, F], labels) of this process's share of a split, or of some images of it."""
        augment = self._augment(eval_resize=eval_resize, eval_crop=eval_crop)
        if indices is None:
            yield from self._batches(self.module.eval_loader(split, augment), self.network.features)
        else:
            with self.module.some_loader(split, indices, augment, mark_bad=mark_bad) as loader:
                yield from self._batches(loader, self.network.features)

    def views(self, split: str, indices: Integers) -> Tensor:
        """The pixels that the network gets of some images, uint8 [B, 3, S, S], on the CPU."""
        with self.module.some_loader(split, indices, shared=False) as loader:
            size = self.module.image_size
            views = [batch.to(self.device).cropped(size).cpu() for batch in loader]
        return torch.cat([torch.empty(0, 3, size, size, dtype=torch.uint8), *views])

    def all_gather(self, batches: Iterable[Tensor]) -> Tensor:
        """Values of all processes' images in their order, [N, ...], on the CPU of every process."""
        mine = list(batches)
        if not is_distributed():
            return torch.cat(mine).cpu()
        # A process that has no image at all knows neither the shape nor the type: others tell.
        shapes: list[tuple[int, Any, Any]] = [(0, None, None)] * torch.distributed.get_world_size()
        known = (mine[0].shape[1:], mine[0].dtype) if mine else (None, None)
        torch.distributed.all_gather_object(shapes, (sum(map(len, mine)), *known))
        lengths = [length for length, _, _ in shapes]
        shape, dtype = next((shape, dtype) for _, shape, dtype in shapes if dtype is not None)
        padded = torch.zeros(max(lengths), *shape, dtype=dtype, device=self.device)
        padded[: sum(map(len, mine))] = torch.cat([padded[:0], *mine])
        parts = [torch.empty_like(padded) for _ in lengths]
        torch.distributed.all_gather(parts, padded)
        return torch.stack(parts, dim=1).flatten(0, 1)[: sum(lengths)].cpu()  # image i is process i mod W's

    def _batches(self, loader: Loader, network: Callable[[Batch], Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in loader:
            batch = batch.to(self.device)
            yield network(batch), batch.labels

    def _augment(self, **views: Any) -> Augment:
        return replace(
            self.module.augment, **{name: value for name, value in views.items() if value is not None}
        )


class Checkpoints(StepCallback):
    """Keeps last.ckpt, and best.ckpt by `monitor`; without a validation split best.ckpt is the final state.

    A checkpoint is written beside the old one and takes its place in one move: killed at any moment, the run
    directory holds a whole one.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        every_steps: int,
        total_steps: int,
        record: Mapping[str, Any],
        monitor: str | None,
        metrics: Metrics,
    ) -> None:
        self.run_dir, self.every_steps, self.total_steps = run_dir, every_steps, total_steps
        self.record, self.monitor, self.metrics = dict(record), monitor, metrics
        self.best: dict[str, float] | None = None
        self.saved_step = -1
        self._began = time.perf_counter()
        self._seconds_before = 0.0

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on counting where an earlier sitting stood."""
        self.best, self.saved_step = state["best"], state["step"]
        self._seconds_before = state["wall_seconds"]
        self.metrics.train_seconds, self.metrics.steps_timed = state["train_seconds"], state["steps_timed"]
        self.metrics.latest = dict(state["metrics"])

    @property
    def wall_seconds(self) -> float:
        """Wall time of the run over all its sittings."""
        return self._seconds_before + time.perf_counter() - self._began

    def on_metrics(self, trainer: Trainer, module: Classifier, values: Mapping[str, float]) -> None:
        """Keep the weights when the monitored metric is the best so far."""
        if self.monitor is None or self.monitor not in values:
            return
        value = values[self.monitor]
        if self.best is None or value > self.best["value"]:
            self.best = {"value": value, "step": module.step}
            self._write(trainer, results.BEST, self.record | module.weights())

    def on_step(self, trainer: Trainer, module: Classifier) -> None:
        """Save if it is time."""
        if module.step % self.every_steps == 0 or module.step == self.total_steps:
            self.save(trainer, module)

    def save(self, trainer: Trainer, module: Classifier) -> None:
        """Write last.ckpt. All processes call it; the first writes."""
        if self.saved_step == module.step:
            return
        self.metrics.pause()
        state = self.record | module.snapshot()
        state["best"], state["metrics"] = self.best, self.metrics.latest
        state["wall_seconds"], state["train_seconds"] = self.wall_seconds, self.metrics.train_seconds
        state["steps_timed"] = self.metrics.steps_timed
        # best.ckpt first: a last.ckpt of the last step says that all is done.
        if module.step == self.total_steps and self.best is None:
            self._write(trainer, results.BEST, self.record | module.weights())
        self._write(trainer, results.LAST, state)
        self.saved_step = module.step
        self.metrics.resume()

    def _write(self, trainer: Trainer, name: str, state: Mapping[str, Any]) -> None:
        if trainer.global_rank == 0:
            path = self.run_dir / name
            try:
                atomic_write(path, lambda file: torch.save(state, file))
            except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
                raise OSError(
                    f"cannot write {path}: {error}. The file that stood there before is intact"
                ) from error


class Stopped(Exception):
    """The run was asked to stop, and has saved."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"{signal.Signals(number).name} at step {step:,}")
        self.exit_code = 130 if number == signal.SIGINT else 143


class Preemption(StepCallback):
    """Saves and stops after the current step when any process got SIGTERM, SIGUSR1 or Ctrl-C.

    The handlers only set a flag: a signal may arrive in the middle of a collective operation. The processes agree
    at the end of each step, through the CPU, so the accelerator is not waited for. A second Ctrl-C ends at once;
    a second SIGTERM does not, because schedulers send several.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self, checkpoints: Checkpoints, *, timeout_minutes: float) -> None:
        self.checkpoints, self.timeout = checkpoints, datetime.timedelta(minutes=timeout_minutes)
        self.received = 0
        self._group: Any = None

    def on_begin(self, trainer: Trainer, module: Classifier) -> None:
        """Take over from Lightning's handlers, which talk to other processes from inside the handler."""
        for number in self.SIGNALS:  # Lightning puts back what was there before, however fitting ends
            signal.signal(number, self._receive)
        if is_distributed():
            self._group = torch.distributed.new_group(backend="gloo", timeout=self.timeout)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == self.received == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.received = number

    def on_step(self, trainer: Trainer, module: Classifier) -> None:
        """Agree, and stop if anyone was asked to."""
        received = self.received
        if self._group is not None:
            flag = torch.tensor(received)
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, group=self._group)
            received = int(flag)
        if received:
            self.checkpoints.save(trainer, module)
            if self._group is not None:
                # No process may end before the file is written: its launcher would kill them all.
                torch.distributed.barrier(group=self._group)
            raise Stopped(received, module.step)


class Progress(StepCallback):
    """Draws the bar on a terminal; elsewhere prints a line per evaluation."""

    def __init__(self, screen: Screen, metrics: Metrics, *, total_steps: int, steps_per_epoch: float) -> None:
        self.screen, self.metrics = screen, metrics
        self.total_steps, self.steps_per_epoch = total_steps, steps_per_epoch

    def on_begin(self, trainer: Trainer, module: Classifier) -> None:
        """Start the bar."""
        self.screen.start_bar(self.total_steps, self.steps_per_epoch, module.step)

    def on_step(self, trainer: Trainer, module: Classifier) -> None:
        """Move the bar."""
        self.screen.move_bar(module.step, self.metrics.latest)

    def on_metrics(self, trainer: Trainer, module: Classifier, values: Mapping[str, float]) -> None:
        """One line per evaluation."""
        self.screen.report(module.step, {**self.metrics.latest, **values})


class SameRecipe(StepCallback):
    """Refuses to train when the processes of a run have different recipes, or stand at different steps."""

    def __init__(self, recipe: str) -> None:
        self.recipe = recipe

    def on_begin(self, trainer: Trainer, module: Classifier) -> None:
        """Compare all processes with the first."""
        if is_distributed():
            found: list[tuple[str, int]] = [("", 0)] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(found, (self.recipe, module.step))
            for rank, (recipe, step) in enumerate(found):
                if recipe != found[0][0]:
                    raise RuntimeError(
                        f"process {rank} has another recipe than process 0: start all with one command"
                    )
                if step != found[0][1]:
                    raise RuntimeError(
                        f"process {rank} stands at step {step:,}, process 0 at {found[0][1]:,}: "
                        "all nodes must see the same run directory"
                    )
