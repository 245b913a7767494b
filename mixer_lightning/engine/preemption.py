"""Being asked to stop: save after the current step or batch of an evaluation, and say so by the exit code."""

from __future__ import annotations

import datetime
from typing import Any

import torch
from lightning.pytorch import Trainer

from mixer_lightning.engine.callbacks import Evaluations, StepCallback
from mixer_lightning.engine.checkpoint import Checkpoints
from mixer_lightning.engine.classifier import Classifier
from mixer_lightning.engine.distributed import is_distributed
from mixer_lightning.stopping import Stopped, StopRequests


class Preemption(StepCallback):
    """Saves and stops after the current step when any process got SIGTERM, SIGUSR1 or Ctrl-C.

    The handlers only set a flag: a signal may arrive in the middle of a collective operation. The processes agree
    at the end of each step and batch of an evaluation, through the CPU, so the accelerator is not waited for.
    """

    def __init__(self, requests: StopRequests, checkpoints: Checkpoints, *, timeout_minutes: float) -> None:
        self.requests, self.checkpoints = requests, checkpoints
        self.is_saving = False
        self.timeout = datetime.timedelta(minutes=timeout_minutes)
        self._group: Any = None

    def on_begin(self, trainer: Trainer, module: Classifier) -> None:
        """From here on a signal is kept until a step has been made: there is something to save."""
        self.requests.catch()
        if is_distributed():
            self._group = torch.distributed.new_group(backend="gloo", timeout=self.timeout)

    def received(self) -> int:
        """The number of the signal that any process got, 0 for none. All processes call it equally often."""
        if self._group is None:
            return self.requests.received
        flag = torch.tensor(self.requests.received)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, group=self._group)
        return int(flag)

    def on_step(self, trainer: Trainer, module: Classifier) -> None:
        """Agree, and stop if anyone was asked to."""
        received = self.received()
        if received:
            self.save(trainer, module)
            raise Stopped(received, where=f" at step {module.step:,}", saved=True)

    def save(self, trainer: Trainer, module: Classifier) -> None:
        """The last save of a session: no process may end before it is written, or its launcher would kill them all."""
        self.requests.keep_on.set()
        self.is_saving = True
        try:
            self.checkpoints.save(trainer, module)
        finally:
            self.is_saving = False
        if self._group is not None:
            torch.distributed.barrier(group=self._group)


class PendingEvaluation(StepCallback):
    """Makes the evaluation in which an earlier session was asked to stop."""

    def __init__(self, evaluations: Evaluations, checkpoints: Checkpoints, preemption: Preemption) -> None:
        self.evaluations, self.checkpoints, self.preemption = evaluations, checkpoints, preemption

    def on_begin(self, trainer: Trainer, module: Classifier) -> None:
        """Evaluate and save, before the next step or after the last one."""
        if module.evaluation_due:
            self.evaluations.on_step(trainer, module)
            self.checkpoints.save(trainer, module)
            self.preemption.on_step(trainer, module)
