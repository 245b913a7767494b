"""The one LightningDataModule: a data set and the order of its samples, as batches for the device."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from mixer_lightning.data.loader import Batch, Loader
from mixer_lightning.data.order import (
    BalancedOrder,
    MicroBatches,
    MicroBatchSampler,
    Order,
    SampleOrder,
    batch_of_step,
    seed_generators,
)
from mixer_lightning.data.sources import Stored
from mixer_lightning.data.sources.stream import StreamImages
from mixer_lightning.data.splits import Subset, shard_sizes
from mixer_lightning.data.stateless_random import derive_seed
from mixer_lightning.engine.source import LARGEST_EVAL_BATCH

if TYPE_CHECKING:
    from mixer_lightning.data.crops import Integers
    from mixer_lightning.data.order import Samples
    from mixer_lightning.data.sources import Dataset, Images
    from mixer_lightning.data.transforms import Augment


class EvalPlan:
    """The share of one process of a split: images rank, rank + W, rank + 2 W, ...; together each exactly once."""

    def __init__(self, num_images: int, *, batch_size: int, rank: int, world_size: int) -> None:
        self.images, self.batch_size = range(rank, num_images, world_size), batch_size
        #: Batches of the process that has the most: the first.
        self.most_batches = -(-len(range(0, num_images, world_size)) // batch_size)

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[Samples]:
        for first in range(0, len(self.images), self.batch_size):
            samples = np.zeros((len(self.images[first : first + self.batch_size]), 3), np.int64)
            samples[:, 1] = self.images[first : first + self.batch_size]
            yield samples


class DataModule(LightningDataModule):
    """Batches of a source for one process of `world_size`.

    Lightning's own samplers and epochs are not used: one pass over `train_dataloader` is the rest of the run,
    from `start_step` to `total_steps`, in the order of `data/order.py`.
    """

    def __init__(
        self,
        source: Dataset,
        augment: Augment,
        *,
        image_size: int,
        micro_batches: MicroBatches,
        total_steps: int,
        seed: int,
        repeats: int,
        sampling: Literal["balanced"] | None = None,
        shuffle_window: int,
        max_bad_fraction: float,
        overfit_batches: int | None = None,
        rank: int,
        threads: int,
        ahead: int,
        pin_memory: bool,
        decode_on: torch.device | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        super().__init__()
        augment.check_image_size(image_size)
        self.source, self.augment, self.image_size = source, augment, image_size
        self.micro_batches, self.total_steps, self.seed, self.repeats = (
            micro_batches,
            total_steps,
            seed,
            repeats,
        )
        self.sampling, self.overfit_batches = sampling, overfit_batches
        self.shuffle_window, self.max_bad_fraction = shuffle_window, max_bad_fraction
        self.rank, self.threads, self.ahead, self.pin_memory = rank, threads, ahead, pin_memory
        self.decode_on, self.memory_format = decode_on, memory_format
        train = source.splits.get("train")
        if total_steps and isinstance(train, StreamImages):
            train.refuse(
                world_size=micro_batches.world_size, repeats=repeats, overfit_batches=overfit_batches
            )
        self.start_step = 0
        #: Called with the split, its images (or some), an index of these and the reason, for each bad image.
        self.on_bad: Callable[[str, Images, int, str], object] | None = None
        self._num_begun = 0  # micro-batches handed to the training step in this session
        self._loaders: dict[str, Loader] = {}
        self._loading_since: float | None = None

    def train_dataloader(self) -> Loader:
        """All batches still to come."""
        self._num_begun = 0
        images = self.source.splits["train"]
        order: SampleOrder
        if isinstance(images, StreamImages):
            from mixer_lightning.data.streaming import StreamOrder  # webdataset: half a second

            order = StreamOrder(len(images))
        elif self.sampling == "balanced":
            order = BalancedOrder(images.labels(np.arange(len(images))), seed=self.seed)
        else:
            order = Order(shard_sizes(images), window=self.shuffle_window, seed=self.seed)
            if isinstance(images, Stored):
                order.prefetch = images.prefetch
        plan = MicroBatchSampler(
            order,
            micro_batches=self.micro_batches,
            rank=self.rank,
            start_step=self.start_step,
            total_steps=self.total_steps,
            repeats=self.repeats,
            overfit_batches=self.overfit_batches,
        )
        if "train" not in self._loaders:
            self._loaders["train"] = self._loader("train", images, plan, seed=self.seed)
        self._loaders["train"].plan = plan
        return self._loaders["train"]

    def eval_loader(self, split: str, augment: Augment | None = None) -> Loader:
        """This process's share of a split, in a fixed order; the last batch may be smaller.

        `augment` shows other crops than the recipe's, until the next call.
        """
        name = f"eval {split}"  # training has a loader of its own
        if name not in self._loaders:
            plan = self.eval_plan(len(self.source.splits[split]))
            self._loaders[name] = self._loader(split, self.source.splits[split], plan, seed=None)
        self._loaders[name].augment = augment or self.augment
        return self._loaders[name]

    @contextlib.contextmanager
    def some_loader(
        self,
        split: str,
        indices: Integers,
        augment: Augment | None = None,
        *,
        shared: bool = True,
        mark_bad: bool = False,
        keep: bool = True,
    ) -> Iterator[Loader]:
        """The like for some images of a split; no others are read. Unless `shared`, this process gets them all.

        Small images of one size are decoded first and kept in memory, unless `keep` is False: then one pass reads them.
        """
        images = Subset(self.source.splits[split], indices)
        loader = self._loader(
            split, images, self.eval_plan(len(images), shared=shared), seed=None, mark_bad=mark_bad, keep=keep
        )
        loader.augment = augment or self.augment
        try:
            yield loader
        finally:
            loader.close()

    def eval_plan(self, num_images: int, *, shared: bool = True) -> EvalPlan:
        """Which of so many images this process evaluates: its share, or all."""
        return EvalPlan(
            num_images,
            batch_size=min(self.micro_batches.device_batch, LARGEST_EVAL_BATCH),
            rank=self.rank if shared else 0,
            world_size=self.micro_batches.world_size if shared else 1,
        )

    def seconds_waiting(self) -> float:
        """For how long a batch has been waited for, or images to be loaded into memory; 0 where none is."""
        since = [loader.waiting_since for loader in self._loaders.values()]
        begun = [each for each in (*since, self._loading_since) if each is not None]
        return time.monotonic() - min(begun) if begun else 0.0

    def seconds_waited(self) -> float:
        """For how long training has waited for its batches in this session."""
        return self._loaders["train"].seconds_waited if "train" in self._loaders else 0.0

    def close(self) -> None:
        """End the threads of the loaders."""
        for loader in self._loaders.values():
            loader.close()
        self._loaders.clear()

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Lightning's hook: augmented images [D, 3, S, S] and soft targets [D, K] of the next training batch.

        All generators are seeded with (seed, step, micro-batch) first, for the random numbers here and for those
        of the forward pass: see data/order.py. Autocast is not on here: augmentation computes as it says.
        """
        done, index = divmod(self._num_begun, self.micro_batches.accumulate)
        self._num_begun += 1
        number = batch_of_step(self.start_step + done, self.overfit_batches)
        micro_batch = index * self.micro_batches.world_size + self.rank
        seed_generators(derive_seed(self.seed, "step", number, micro_batch))
        assert batch.params is not None
        crops = batch.cropped(self.image_size)
        images, targets = self.augment.train_batch(
            crops,
            batch.labels,
            batch.params,
            len(self.source.classes),
            batch_seed=derive_seed(self.seed, "mixing", number),
        )
        return images.contiguous(memory_format=self.memory_format), targets

    def normalised_crops(self, batch: Batch) -> Tensor:
        """Images [B, 3, S, S] of an evaluation batch on its device, as a backbone takes them."""
        return self.augment.eval_batch(batch.cropped(self.image_size))

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Lightning's hook; its own way would take the batch apart."""
        return batch.to(device)

    def _loader(
        self,
        split: str,
        images: Images,
        plan: Any,
        *,
        seed: int | None,
        mark_bad: bool = False,
        keep: bool = True,
    ) -> Loader:
        self._loading_since = time.monotonic()
        try:
            options: dict[str, Any] = {
                "image_size": self.image_size,
                "threads": self.threads,
                "ahead": self.ahead,
                "pin_memory": self.pin_memory,
                "max_bad_fraction": self.max_bad_fraction,
                "on_bad": None if self.on_bad is None else functools.partial(self.on_bad, split),
                "decode_on": self.decode_on,
            }
            if isinstance(images, StreamImages):
                from mixer_lightning.data.streaming import Place, StreamLoader  # webdataset: half a second

                assert seed is not None
                place = Place(self.rank, self.micro_batches.world_size, self.start_step)
                return StreamLoader(images, plan, self.augment, seed=seed, place=place, **options)
            return Loader(
                images, plan, self.augment, seed=seed, mark_bad=mark_bad, keep_in_memory=keep, **options
            )
        finally:
            self._loading_since = None
