"""Who sees which sample when: a pure function of the seed and the position, never of the machine.

The training set is one endless stream: epoch 0 in its order, then epoch 1 in its own, and so on. Global batch b
is samples [b G, (b + 1) G) of the stream, so every sample is seen exactly once per epoch and nothing is dropped.
A global batch is cut into chunks of `device_batch` samples, D. With W processes and A = G / (W D) accumulated
micro-batches, process r takes the chunks a W + r, a = 0 ... A - 1. A chunk is what one forward pass sees: its
mixing, dropout and batch statistics depend on (seed, step, chunk) alone, so 8 devices, or 1 that accumulates 8
micro-batches, do the same arithmetic.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class SampleKey(NamedTuple):
    """Which sample, in which epoch, and the how-manieth of its repetitions there (repeated augmentation)."""

    epoch: int
    image: int
    repeat: int


class Chunking(NamedTuple):
    """How a global batch is spread over processes and accumulated micro-batches."""

    batch_size: int
    device_batch: int
    world_size: int

    @property
    def accumulate(self) -> int:
        """Micro-batches per optimiser step on each process."""
        return self.batch_size // (self.device_batch * self.world_size)


def chunking(*, batch_size: int, device_batch: int | None, world_size: int) -> Chunking:
    """Check that a global batch divides into equal chunks for every process.

    Raises:
        ValueError: it does not; the message says which device batches would do.
    """
    per_process, rest = divmod(batch_size, world_size)
    if rest:
        raise ValueError(f"batch_size {batch_size} does not divide among {world_size} processes")
    chunk = per_process if device_batch is None else device_batch
    if per_process % chunk:
        fit = [d for d in range(1, per_process + 1) if per_process % d == 0]
        near = sorted(sorted(fit, key=lambda d: abs(d - chunk))[:3])
        raise ValueError(
            f"device_batch {chunk} does not divide {per_process}, which is batch_size {batch_size} / {world_size} "
            f"process{'es' if world_size > 1 else ''}: set device_batch to {' or '.join(map(str, near))}"
        )
    return Chunking(batch_size, chunk, world_size)


def key(*parts: int | str) -> int:
    """A 63-bit seed from anything that names a random draw: key(seed, "order", epoch)."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_generators(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators (CPU and accelerators) with one number."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def epoch_order(num_samples: int, *, seed: int, epoch: int, repeats: int = 1) -> Tensor:
    """Sample indices of one epoch, [num_samples] int64: a permutation that depends on (seed, epoch) alone.

    With `repeats` R > 1 (repeated augmentation, arXiv 1901.09335), an epoch takes the first num_samples / R of the
    permutation, each R times in a row, so that the repetitions meet in one global batch.
    """
    generator = torch.Generator().manual_seed(key(seed, "order", epoch))
    order = torch.randperm(num_samples, generator=generator)
    return (
        order
        if repeats == 1
        else order[: -(-num_samples // repeats)].repeat_interleave(repeats)[:num_samples]
    )


class ChunkSampler:
    """Batch sampler of one process: the keys of its chunks from `start_step` to `total_steps`.

    Yields lists of D `SampleKey`; its length is the number of chunks still to come.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        chunks: Chunking,
        rank: int,
        seed: int,
        start_step: int,
        total_steps: int,
        repeats: int = 1,
    ) -> None:
        self.num_samples, self.chunks, self.rank, self.seed = num_samples, chunks, rank, seed
        self.start_step, self.total_steps, self.repeats = start_step, total_steps, repeats
        # Where a batch takes its samples from: repetitions as far apart as can be, or chunks would be full of copies
        # and mixing would blend an image with itself.
        self._spread = [i for first in range(repeats) for i in range(first, chunks.batch_size, repeats)]
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        return (self.total_steps - self.start_step) * self.chunks.accumulate

    def __iter__(self) -> Iterator[list[SampleKey]]:
        size, chunk, world_size = self.chunks
        for step in range(self.start_step, self.total_steps):
            for micro in range(self.chunks.accumulate):
                first = (micro * world_size + self.rank) * chunk
                yield [self._sample(step * size + i) for i in self._spread[first : first + chunk]]

    def _sample(self, position: int) -> SampleKey:
        epoch, offset = divmod(position, self.num_samples)
        if epoch != self._epoch:
            self._order = epoch_order(self.num_samples, seed=self.seed, epoch=epoch, repeats=self.repeats)
            self._epoch = epoch
        return SampleKey(epoch, int(self._order[offset]), offset % self.repeats)
