"""Training metrics, summed on the device between two lines of the log."""

from __future__ import annotations

import torch
from torch import Tensor

from mixer_lightning import results
from mixer_lightning.engine.distributed import is_distributed


class NonFiniteLoss(RuntimeError):
    """The loss became infinite or not a number."""


class NonFiniteOutput(NonFiniteLoss):
    """A network gave an evaluation logits or features that are infinite or not a number."""


class MetricAccumulator:
    """Sums over the steps since the last line of the log. They stay on the device until they are read."""

    NAMES = ("loss", "top1", "micro_batches", "grad_norm", "norms")

    def __init__(self) -> None:
        self._sums: Tensor | None = None  # [5] float64
        self._sums_before: Tensor | None = None  # the step that is being made
        self._step = -1  # which that is
        self._bad_step: Tensor | None = None  # first step with a loss that is not finite, -1 for none

    def add(self, step: int, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Count a micro-batch: its loss, and how often the largest logit is at the largest target."""
        if step != self._step:
            self._sums_before, self._step = self._sums, step
        top1 = (logits.argmax(-1) == targets.argmax(-1)).double().mean()
        one, zero = torch.ones_like(top1), torch.zeros_like(top1)
        self._add(torch.stack([loss.double(), top1, one, zero, zero]))
        if self._bad_step is None:
            self._bad_step = torch.full((), -1, device=loss.device)
        bad = ~torch.isfinite(loss) & (self._bad_step < 0)
        self._bad_step = torch.where(bad, step, self._bad_step)

    def add_grad_norm(self, norm: Tensor) -> None:
        """Count a gradient norm; an infinite one belongs to a step that a scaled loss leaves out."""
        zero, finite = torch.zeros_like(norm, dtype=torch.float64), norm.isfinite()
        self._add(torch.stack([zero, zero, zero, torch.where(finite, norm.double(), zero), finite.double()]))

    def _add(self, values: Tensor) -> None:
        self._sums = values if self._sums is None else self._sums.to(values.device) + values

    def check(self) -> None:
        """Wait for the device and look, on all processes together.

        Raises:
            NonFiniteLoss: some loss since the last line was infinite or not a number, on any process.
        """
        if self._bad_step is None:
            return
        bad_step = self._bad_step.clone()
        if is_distributed():
            torch.distributed.all_reduce(bad_step, torch.distributed.ReduceOp.MAX)
        if bad_step >= 0:
            raise NonFiniteLoss(
                f"the loss of step {int(bad_step) + 1:,} is not finite. Lower optimizer.lr, lengthen the warm-up, "
                "or set clip_grad_norm"
            )

    def sums(self, steps: int, device: torch.device) -> list[float]:
        """The sums over all processes, which meet on `device`, of the first `steps` steps of the run.

        Of a step that is not finished nothing is counted: the next session makes it anew.
        """
        sums = self._sums_before if self._step >= steps else self._sums
        return self._over_processes(
            torch.zeros(len(self.NAMES), dtype=torch.float64, device=device)
            if sums is None
            else sums.to(device)
        )

    def _over_processes(self, sums: Tensor) -> list[float]:
        if is_distributed():
            sums = sums.clone()
            torch.distributed.all_reduce(sums)
        return [float(value) for value in sums.cpu()]

    def restore(self, sums: list[float]) -> None:
        """Go on from sums of an earlier session."""
        self._sums = torch.tensor(sums, dtype=torch.float64)

    def read(self) -> dict[str, float]:
        """Means over the steps since the last call and all processes; the sums then start anew."""
        self.check()
        assert self._sums is not None
        loss, top1, micro_batches, grad_norm, norms = self._over_processes(self._sums)
        self._sums = torch.zeros_like(
            self._sums
        )  # on its device: a checkpoint of this step sums over processes again
        means = {results.TRAIN_LOSS: loss / micro_batches, results.TRAIN_TOP1: top1 / micro_batches}
        return means | ({results.GRAD_NORM: grad_norm / norms} if norms else {})
