"""The one LightningDataModule: a data set, its transforms and the order of samples, as batches for the device."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
from typing import TYPE_CHECKING

from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mixer_lightning.data.order import Chunking, ChunkSampler, SampleKey, key, seed_generators

if TYPE_CHECKING:
    from mixer_lightning.data.sources import Dataset as Source
    from mixer_lightning.data.sources import Images
    from mixer_lightning.data.transforms import Augment


class TrainImages(Dataset[tuple[Tensor, int]]):
    """Augmented training images; the augmentation of a sample is a function of (seed, epoch, image, repeat)."""

    def __init__(self, images: Images, augment: Augment, *, image_size: int, seed: int) -> None:
        self.images, self.augment, self.image_size, self.seed = images, augment, image_size, seed

    def __getitem__(self, sample: SampleKey) -> tuple[Tensor, int]:
        """One image [3, S, S] uint8 and its label."""
        image, label = self.images[sample.image]
        seed_generators(key(self.seed, "augment", *sample))
        return self.augment.train_image(image, self.image_size), label


class EvalImages(Dataset[tuple[Tensor, int]]):
    """The share of one process of a split: images rank, rank + W, rank + 2 W, ...; together each exactly once."""

    def __init__(
        self, images: Images, augment: Augment, *, image_size: int, rank: int, world_size: int
    ) -> None:
        self.images, self.augment, self.image_size = images, augment, image_size
        self.indices = range(rank, len(images), world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        """One image [3, S, S] uint8 and its label."""
        image, label = self.images[self.indices[i]]
        return self.augment.eval_image(image, self.image_size), label


class DataModule(LightningDataModule):
    """Batches (images uint8 [D, 3, S, S], labels int64 [D]) of a source, for one process of `world_size`.

    Lightning's own samplers and epochs are not used: one pass over `train_dataloader` is the rest of the run,
    from `start_step` to `total_steps`, in the order of `data/order.py`.
    """

    def __init__(
        self,
        source: Source,
        augment: Augment,
        *,
        image_size: int,
        chunks: Chunking,
        total_steps: int,
        seed: int,
        repeats: int,
        rank: int,
        num_workers: int,
        pin_memory: bool,
    ) -> None:
        super().__init__()
        self.source, self.augment, self.image_size = source, augment, image_size
        self.chunks, self.total_steps, self.seed, self.repeats = chunks, total_steps, seed, repeats
        self.rank, self.num_workers, self.pin_memory = rank, num_workers, pin_memory
        self.start_step = 0
        self._eval_loaders: dict[str, DataLoader[tuple[Tensor, int]]] = {}

    def train_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """All batches still to come."""
        images = self.source.splits["train"]
        sampler = ChunkSampler(
            len(images),
            chunks=self.chunks,
            rank=self.rank,
            seed=self.seed,
            start_step=self.start_step,
            total_steps=self.total_steps,
            repeats=self.repeats,
        )
        return DataLoader(
            TrainImages(images, self.augment, image_size=self.image_size, seed=self.seed),
            batch_sampler=sampler,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            prefetch_factor=4 if self.num_workers else None,
            worker_init_fn=_leave_signals_to_the_run,
        )

    def close(self) -> None:
        """End the loader processes that evaluations keep."""
        self._eval_loaders.clear()

    def eval_splits(self) -> list[str]:
        """Names of the splits to evaluate on: all but train."""
        return [name for name in self.source.splits if name != "train"]

    def eval_loader(self, split: str) -> DataLoader[tuple[Tensor, int]]:
        """This process's share of a split, in a fixed order; the last batch may be smaller."""
        if split not in self._eval_loaders:
            images = EvalImages(
                self.source.splits[split],
                self.augment,
                image_size=self.image_size,
                rank=self.rank,
                world_size=self.chunks.world_size,
            )
            self._eval_loaders[split] = DataLoader(
                images,
                batch_size=min(self.chunks.device_batch, 256),
                num_workers=self.num_workers,
                pin_memory=self.pin_memory,
                persistent_workers=self.num_workers > 0,
                worker_init_fn=_leave_signals_to_the_run,
            )
        return self._eval_loaders[split]


def _leave_signals_to_the_run(worker: int) -> None:
    """Let loader processes live through a request to stop.

    Launchers signal every process of a run, and the run must still finish its step and save. Loader processes end
    with `close`, or with the run's main process.
    """
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def _end_loader_processes() -> None:
    """Python ends child processes by SIGTERM, which those of a loader ignore: after an error it would wait forever."""
    for process in multiprocessing.active_children():
        process.kill()
