"""From images to logits and features: the one path of evaluations, few-shot and predict."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mixer_lightning.data.crops import Filter, Integers
from mixer_lightning.data.loader import Loader
from mixer_lightning.data.mixing import targets_of
from mixer_lightning.data.transforms import Augment
from mixer_lightning.engine.datamodule import DataModule, EvalPlan
from mixer_lightning.engine.distributed import all_gather_interleaved, is_distributed
from mixer_lightning.engine.machine import Machine
from mixer_lightning.engine.metrics import NonFiniteOutput
from mixer_lightning.evals import Resize


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
    """A backbone at the precision and memory layout of a machine, on whose device it is, compiled if it asks for it."""

    def __init__(self, backbone: nn.Module, machine: Machine) -> None:
        self.backbone: Any = backbone
        self.machine, self.memory_format = machine, machine.memory_format(backbone)

    @functools.cached_property
    def _forward(self) -> Callable[[Tensor], Tensor]:
        return self.machine.compiled(self.backbone)

    @functools.cached_property
    def _forward_features(self) -> Callable[[Tensor], Tensor]:
        return self.machine.compiled(self.backbone.forward_features)

    def logits(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, S, S] to float32 [B, K]."""
        with self.machine.autocast():
            logits = self._forward(images.contiguous(memory_format=self.memory_format))
        return logits.float()

    def features(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, S, S] to what the head's linear layer sees, pooled in float32: [B, F]."""
        with self.machine.autocast():
            features = self._forward_features(images.contiguous(memory_format=self.memory_format))
        pooled: Tensor = self.backbone.forward_head(features.float(), pre_logits=True)
        return pooled


class Predictions:
    """The `Predict` of evaluations (evals/__init__.py): a network over the splits of a DataModule.

    `on_batch` hears of a split how many batches are done of how many, before the first and after each: as often in
    every process, whether or not it has a share of the last batch. After the last one NonFiniteOutput is raised, in
    all processes, if any output was not finite.
    """

    def __init__(
        self,
        network: Network,
        module: DataModule,
        *,
        device: torch.device,
        folder: Path | None,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        on_batch: Callable[[str, int, int], None] = lambda split, done, total: None,
    ) -> None:
        self.network, self.module, self.data = network, module, module.source
        self.device, self.folder, self.on_batch = device, folder, on_batch
        self._criterion = criterion

    @property
    def loss(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """The recipe's loss of a batch, of logits [B, K] and labels; None without a `criterion` for soft targets."""
        return None if self._criterion is None else self._loss

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        assert self._criterion is not None
        return self._criterion(logits, targets_of(labels, num_classes=logits.shape[1]))

    def local_indices(self, split: str) -> Integers:
        """Indices [n] of this process's images, in the order of `logits`."""
        images = self.module.eval_plan(len(self.data.splits[split])).images
        return np.arange(images.start, images.stop, images.step)

    def logits(self, split: str, *, eval_resize: Resize | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches (logits [B, K], labels) of this process's images of a split."""
        augment = self._augment(eval_resize=eval_resize)
        yield from self._batches(split, self.module.eval_loader(split, augment), self.network.logits)

    def features(
        self,
        split: str,
        *,
        eval_resize: Resize | None = None,
        eval_crop: float | None = None,
        eval_interpolation: Filter | None = None,
        indices: Integers | None = None,
        mark_bad: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches (features [B, F], labels) of this process's images of a split, or of some images of it."""
        augment = self._augment(
            eval_resize=eval_resize, eval_crop=eval_crop, eval_interpolation=eval_interpolation
        )
        if indices is None:
            yield from self._batches(split, self.module.eval_loader(split, augment), self.network.features)
        else:
            with self.module.some_loader(split, indices, augment, mark_bad=mark_bad) as loader:
                yield from self._batches(split, loader, self.network.features)

    def crops(self, split: str, indices: Integers) -> Tensor:
        """The pixels that the network gets of some images, before `shuffle`: uint8 [B, 3, S, S], on the CPU."""
        with self.module.some_loader(split, indices, shared=False) as loader:
            size = self.module.image_size
            crops = [batch.to(self.device).cropped(size).cpu() for batch in loader]
        return torch.cat([torch.empty(0, 3, size, size, dtype=torch.uint8), *crops])

    def all_gather(self, batches: Iterable[Tensor]) -> Tensor:
        """Values of all processes' images in their order, [N, ...], on the CPU of every process."""
        return all_gather_interleaved(batches, self.device)

    def _batches(
        self, split: str, loader: Loader, infer: Callable[[Tensor], Tensor]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        assert isinstance(loader.plan, EvalPlan)
        total = loader.plan.most_batches
        self.on_batch(split, 0, total)
        counts = torch.zeros(2, dtype=torch.int64, device=self.device)  # images that are bad, images
        for done, batch in enumerate(loader, start=1):
            batch = batch.to(self.device)
            values = infer(self.module.normalised_crops(batch))
            bad = ~values.isfinite().all(dim=1)
            counts += torch.stack([bad.sum(), torch.full_like(counts[0], len(bad))])
            yield values, batch.labels
            self.on_batch(split, done, total)
        for done in range(len(loader), total):
            self.on_batch(split, done + 1, total)
        if is_distributed():
            torch.distributed.all_reduce(counts)
        num_bad, num_images = counts.tolist()
        if num_bad:
            raise NonFiniteOutput(
                f"the network's output is not finite for {num_bad:,} of {num_images:,} images of {split}: a figure "
                "would mean nothing. Its weights are not finite, or overflow unless trainer.precision=32-true"
            )

    def _augment(self, **asked: Any) -> Augment:
        """The recipe's, with what is asked for and not None."""
        return replace(self.module.augment, **{key: each for key, each in asked.items() if each is not None})
