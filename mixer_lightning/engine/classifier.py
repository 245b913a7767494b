"""Classifier: the one LightningModule. A backbone, its loss, its optimiser, and where the run stands."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mixer_lightning.data.order import MicroBatches, seed_generators
from mixer_lightning.data.stateless_random import derive_seed

if TYPE_CHECKING:
    from mixer_lightning.data.loader import Batch
    from mixer_lightning.data.transforms import Augment


class NonFiniteLoss(RuntimeError):
    """The loss became infinite or not a number."""


class Classifier(LightningModule):
    """Trains a backbone: images [D, 3, S, S] uint8 -> augment -> logits [D, K] -> loss -> step.

    Everything random in a step is drawn after seeding with (seed, step, chunk), see data/order.py; `step` counts
    finished optimiser steps since the run began, over all its sittings.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        augment: Augment,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: Callable[[nn.Module], Optimizer],
        schedule: Callable[[int], float],
        image_size: int,
        num_classes: int,
        micro_batches: MicroBatches,
        rank: int,
        seed: int,
        clip_grad_norm: float | None,
        ema_decay: float | None,
        channels_last: bool,
        compile: bool,
    ) -> None:
        super().__init__()
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model = model.to(memory_format=layout)
        self.augment, self.loss, self.schedule = augment, loss, schedule
        self.image_size, self.num_classes = image_size, num_classes
        self.micro_batches, self.rank, self.seed = micro_batches, rank, seed
        self.clip_grad_norm, self.layout = clip_grad_norm, layout
        self.make_optimizer = optimizer
        self.optimizer: Optimizer | None = None
        self.step = self.start_step = 0
        self.state: dict[str, Any] | None = None
        self.window = Window()
        # Both live outside the module tree: the names in a checkpoint are the backbone's, compiled or averaged or not.
        self._outside: dict[str, Any] = {"forward": torch.compile(model) if compile else model}
        if ema_decay is not None:
            average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema_decay), use_buffers=True)  # type: ignore[no-untyped-call]
            self._outside["ema"] = average.requires_grad_(False)

    # ------------------------------------------------------------------------------------------ training

    @property
    def ema(self) -> AveragedModel | None:
        """The exponential moving average of the backbone, if the recipe asks for one."""
        return self._outside.get("ema")

    def on_fit_start(self) -> None:
        """On the device now: take the average there, and stand where an earlier sitting stood."""
        if self.ema is not None:
            self.ema.module.to(
                self.device
            )  # its counter stays on the CPU, or every step would wait for the device
        if self.state is not None:
            self._restore(self.state)
            self.state = None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one chunk."""
        step, micro = divmod(batch_idx, self.micro_batches.accumulate)
        chunk = micro * self.micro_batches.world_size + self.rank
        seed_generators(derive_seed(self.seed, "step", self.start_step + step, chunk))
        assert batch.params is not None
        images = batch.cropped(self.image_size)
        pixels, targets = self.augment.train_batch(images, batch.labels, batch.params, self.num_classes)
        logits = self._outside["forward"](pixels.contiguous(memory_format=self.layout))
        loss = self.loss(logits, targets)
        self.window.add(self.step, loss.detach(), logits.detach(), targets)
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
            self.window.add_grad_norm(norm)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """One optimiser step at the rate of the schedule, then the average."""
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * self.schedule(self.step)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.step += 1
        if self.ema is not None:
            self.ema.update_parameters(self.model)

    @property
    def lr(self) -> float:
        """Learning rate of the last step."""
        assert self.optimizer is not None
        return float(self.optimizer.param_groups[0]["lr"])

    # ---------------------------------------------------------------------------------------- evaluation

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[Network]:
        """The network as evaluations use it: the average, where there is one."""
        self._average_batch_norm()
        backbone = self.ema.module if self.ema is not None else self.model
        with evaluating(backbone):
            yield Network(
                backbone,
                self.augment,
                image_size=self.image_size,
                layout=self.layout,
                precision=self.trainer.precision_plugin.forward_context,
            )

    # ----------------------------------------------------------------------------------------- checkpoint

    def snapshot(self) -> dict[str, Any]:
        """Everything that the next sitting needs, in plain containers and tensors."""
        assert self.optimizer is not None
        self.window.check()
        self._check_weights()
        self._average_batch_norm()
        state: dict[str, Any] = {
            "step": self.step,
            "state_dict": {f"model.{name}": value for name, value in self.model.state_dict().items()},
            "optimizer": self.optimizer.state_dict(),
            "precision": self.trainer.precision_plugin.state_dict(),
            "window": self.window.sums(),
        }
        if self.ema is not None:
            state["ema"] = self.ema.module.state_dict()
            state["ema_updates"] = int(self.ema.n_averaged)
        return state

    def _average_batch_norm(self) -> None:
        average_batch_norm(self.model)
        if self.ema is not None:  # an average of averages: what one process would have is linear in these
            average_batch_norm(self.ema.module)

    def _check_weights(self) -> None:
        """A finite loss may still have made a step to infinity: no such state is kept."""
        norms = torch._foreach_norm([p.detach() for p in self.model.parameters()])
        if not torch.isfinite(torch.stack(norms)).all():
            raise NonFiniteLoss(
                f"step {self.step:,} made weights that are not finite. Lower optimizer.lr, lengthen the warm-up, "
                "or set clip_grad_norm"
            )

    def weights(self) -> dict[str, Any]:
        """The weights that were evaluated, without what only training needs."""
        network = self.ema.module if self.ema is not None else self.model
        return {"step": self.step, "state_dict": {f"model.{k}": v for k, v in network.state_dict().items()}}

    def resume_from(self, state: dict[str, Any]) -> None:
        """Start fitting where `snapshot` stood."""
        self.step = self.start_step = state["step"]
        self.state = state

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict({k.removeprefix("model."): v for k, v in state["state_dict"].items()})
        optimizer = self.configure_optimizers()
        optimizer.load_state_dict(state["optimizer"])
        for parameter, slots in optimizer.state.items():
            for (
                name,
                value,
            ) in slots.items():  # fused kernels walk over memory: the layout must be the parameter's
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    slots[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        if state["precision"]:  # empty unless the earlier sitting scaled its loss
            self.trainer.precision_plugin.load_state_dict(state["precision"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
            self.ema.n_averaged.fill_(state["ema_updates"])
        if self.rank == 0:  # the sums are those of all processes
            self.window.restore(state["window"])


@contextlib.contextmanager
def evaluating(backbone: nn.Module) -> Iterator[None]:
    """In evaluation mode and without gradients; afterwards as before."""
    training = backbone.training
    backbone.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        backbone.train(training)


class Network:
    """A backbone as evaluations use it: from batches on its device, whose images get the evaluation's view.

    `precision` gives the context of its forward pass, such as autocast.
    """

    def __init__(
        self,
        backbone: nn.Module,
        augment: Augment,
        *,
        image_size: int,
        layout: torch.memory_format,
        precision: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.backbone: Any = backbone
        self.augment, self.image_size, self.layout, self.precision = augment, image_size, layout, precision

    def __call__(self, batch: Batch) -> Tensor:
        """Logits [B, K] float32."""
        with self.precision():
            logits: Tensor = self.backbone(self._pixels(batch))
        return logits.float()

    def features(self, batch: Batch) -> Tensor:
        """What the head sees, [B, F] float32: `forward_features`, the mean over positions."""
        with self.precision():
            features: Tensor = self.backbone.forward_features(self._pixels(batch))
        features = features.float()
        if features.ndim == 4:  # [B, F, H, W]
            return features.mean(dim=(2, 3))
        return features.mean(dim=1) if features.ndim == 3 else features  # [B, S, F]

    def _pixels(self, batch: Batch) -> Tensor:
        pixels = self.augment.eval_batch(batch.cropped(self.image_size))
        return pixels.contiguous(memory_format=self.layout)


class Window:
    """Sums over the steps since the last line of the log. They stay on the device until they are read."""

    NAMES = ("loss", "top1", "micro_batches", "grad_norm", "norms")

    def __init__(self) -> None:
        self._sums: Tensor | None = None  # [5] float64
        self._bad_step: Tensor | None = None  # first step with a loss that is not finite, -1 for none

    def add(self, step: int, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Count a chunk: its loss, and how often the largest logit is at the largest target."""
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
            NonFiniteLoss: some loss of this window was infinite or not a number, on any process.
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

    def sums(self) -> list[float]:
        """The sums over all processes."""
        sums = torch.zeros(len(self.NAMES), dtype=torch.float64) if self._sums is None else self._sums.clone()
        if is_distributed():
            torch.distributed.all_reduce(sums)
        return [float(value) for value in sums.cpu()]

    def restore(self, sums: list[float]) -> None:
        """Go on from sums of an earlier sitting."""
        self._sums = torch.tensor(sums, dtype=torch.float64)

    def read(self) -> dict[str, float]:
        """Means over the window and all processes; the window then starts anew."""
        self.check()
        loss, top1, micro_batches, grad_norm, norms = self.sums()
        assert self._sums is not None
        self._sums = torch.zeros_like(
            self._sums
        )  # on its device: a checkpoint of this step sums over processes again
        means = {"train/loss": loss / micro_batches, "train/top1": top1 / micro_batches}
        return means | ({"train/grad_norm": grad_norm / norms} if norms else {})


def is_distributed() -> bool:
    """Whether this process is one of several."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def average_batch_norm(model: nn.Module) -> None:
    """Give every process the mean of all processes' BatchNorm statistics (timm's `--dist-bn reduce`)."""
    if not is_distributed():
        return
    statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if statistics:
        flat = torch.cat([buffer.flatten() for buffer in statistics])
        torch.distributed.all_reduce(flat)
        flat /= torch.distributed.get_world_size()
        for buffer, mean in zip(statistics, torch.split(flat, [b.numel() for b in statistics]), strict=True):
            buffer.copy_(mean.view_as(buffer))
