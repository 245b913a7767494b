"""Being asked to stop: save after the current step, and say so by the exit code."""

from __future__ import annotations

import datetime
import signal
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Trainer

from mixer_lightning.engine.callbacks import StepCallback
from mixer_lightning.engine.checkpoint import Checkpoints
from mixer_lightning.engine.classifier import Classifier
from mixer_lightning.engine.distributed import is_distributed


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
