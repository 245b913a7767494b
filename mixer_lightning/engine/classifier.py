"""Classifier: the one LightningModule. A backbone, its loss, its optimiser, and where the run stands."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mixer_lightning.data.order import MicroBatches
from mixer_lightning.engine import sharding
from mixer_lightning.engine.distributed import average_batch_norm
from mixer_lightning.engine.inference import Network, evaluating
from mixer_lightning.engine.machine import Machine
from mixer_lightning.engine.metrics import MetricAccumulator


class Classifier(LightningModule):
    """Trains a backbone: images [D, 3, S, S] -> logits [D, K] -> loss against soft targets [D, K] -> step.

    Images come augmented, normalised and in `memory_format` from the DataModule, which has seeded the generators for
    them and for dropped branches. `step` counts finished optimiser steps since the run began, over all its sessions.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: Callable[[nn.Module], Optimizer],
        schedule: Callable[[int], float],
        micro_batches: MicroBatches,
        machine: Machine,
        clip_grad_norm: float | None,
        ema_decay: float | None,
        frozen: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.memory_format = machine.memory_format(model)
        self.model = model.to(memory_format=self.memory_format)
        self.loss, self.schedule, self.make_optimizer = loss, schedule, optimizer
        self.micro_batches, self.machine, self.clip_grad_norm = micro_batches, machine, clip_grad_norm
        self.optimizer: Optimizer | None = None
        self.step = 0
        self.evaluation_due = False  # after `step`: it was broken off
        self.only_evaluates = False  # all steps were made in earlier sessions
        self.ended: str | None = None  # why this step is the last before the run's length, of an early stop
        self.frozen = list(frozen)
        self.accumulator = MetricAccumulator()
        self.checkpoint_content: Callable[[], Mapping[str, Any]] = dict  # of one that Lightning writes
        # Both live outside the module tree: the names in a checkpoint are the backbone's, compiled or averaged or not.
        self._outside: dict[str, Any] = {"forward": machine.compiled(model)}
        if ema_decay is not None:
            average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema_decay), use_buffers=True)  # type: ignore[no-untyped-call]
            self._outside["ema"] = average.requires_grad_(False)

    def configure_model(self) -> None:
        """Lightning's hook, once the processes have met: recompute blocks, share parameters out, as is asked for."""
        if self.machine.activation_checkpointing:
            sharding.recompute_blocks(self.model)
        if self.machine.fully_shard and self.machine.world_size > 1:
            self._outside["skeleton"] = sharding.skeleton(self.model)
            assert self.device_mesh is not None
            sharding.shard(self.model, self.device_mesh["data_parallel"])

    @property
    def ema(self) -> AveragedModel | None:
        """The exponential moving average of the backbone, if the recipe asks for one."""
        return self._outside.get("ema")

    @property
    def weights(self) -> nn.Module:
        """The backbone that is evaluated: the average, where there is one."""
        return self.ema.module if self.ema is not None else self.model

    def on_fit_start(self) -> None:
        """Take the average to the device; its counter stays on the CPU, or every step would wait for the device."""
        if self.ema is not None:
            self.ema.module.to(self.device)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """Lightning's hook: -1 ends the training where there is no step to be made."""
        return -1 if self.only_evaluates else None

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of one micro-batch."""
        images, targets = batch
        for part in self.frozen:  # fitting and evaluations put the whole backbone into training mode
            part.eval()
        logits = self._outside["forward"](images)
        loss = self.loss(logits, targets)
        self.accumulator.add(self.step, loss.detach(), logits.detach(), targets)
        return loss

    def configure_optimizers(self) -> Optimizer:
        """The recipe's optimiser; its peak learning rates are kept for the schedule."""
        if self.optimizer is None:
            self.optimizer = self.make_optimizer(self.model)
            for group in self.optimizer.param_groups:
                group["peak_lr"] = group["lr"]
        return self.optimizer

    def configure_gradient_clipping(self, optimizer: Optimizer, *_: Any, **__: Any) -> None:
        """Clip by the global norm, and keep the norm for the log."""
        if self.clip_grad_norm is not None:
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad_norm)
            self.accumulator.add_grad_norm(sharding.whole(norm))

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """One optimiser step at the rate of the schedule, then the averages.

        BatchNorm's statistics are averaged after each: a run that is asked to stop would else be left with other last
        bits than one that goes on, and averages their weights with them.
        """
        self.set_rate()
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.step += 1
        average_batch_norm(self.model)
        if self.ema is not None:
            self.ema.update_parameters(self.model)

    def set_rate(self) -> None:
        """Give the optimiser the rates that the schedule has for the next step."""
        assert self.optimizer is not None
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * self.schedule(self.step)

    @property
    def lr(self) -> float:
        """Learning rate of the last step: the head's, where lower layers have lower ones."""
        assert self.optimizer is not None
        return max(float(group["lr"]) for group in self.optimizer.param_groups)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook: its ModelCheckpoint writes what is read like best.ckpt, also with save_weights_only."""
        checkpoint |= self.checkpoint_content()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[Network]:
        """The network as evaluations use it, in evaluation mode and without gradients."""
        weights, bare = self.weights, self._outside.get("skeleton")
        if bare is not None:  # processes with fewer images would not take part in gathering a block
            weights = sharding.whole_copy(weights, bare, self.device)
        with evaluating(weights):
            yield Network(weights, self.machine)
