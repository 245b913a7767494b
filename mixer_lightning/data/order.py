"""Which process sees which sample when: a pure function of the seed and the position, never of the machine.

The training set is one endless stream: epoch 0 in its order, then epoch 1 in its own, and so on. Global batch b
is samples [b G, (b + 1) G) of the stream, so every sample is seen exactly once per epoch and nothing is dropped.
In an epoch the shards are shuffled, and then the samples within a window of shards, so that reads stay local; without
shards the whole set is one window. A position is two integers, epoch and offset: finding its sample needs one window's
permutation, however far into a run it is.

A global batch is cut into micro-batches of `device_batch` samples, D. With W processes and A = G / (W D) accumulated
micro-batches, process r gets the micro-batches a W + r, a = 0 ... A - 1. A micro-batch is what one forward pass sees:
its mixing, dropout and batch statistics depend on (seed, step, index of the micro-batch) alone, so 8 devices, or 1
that accumulates 8 micro-batches, do the same arithmetic. (What a recipe mixes with per global batch depends on seed and
step alone.)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from mixer_lightning.data.stateless_random import derive_seed

Samples = npt.NDArray[np.int64]  # [D, 3]: epoch, image, repeat index


class MicroBatches(NamedTuple):
    """How a global batch is spread over processes and accumulated micro-batches."""

    batch_size: int
    device_batch: int
    world_size: int

    @property
    def accumulate(self) -> int:
        """Micro-batches per optimiser step on each process."""
        return self.batch_size // (self.device_batch * self.world_size)


def split_batch(*, batch_size: int, device_batch: int | None, world_size: int) -> MicroBatches:
    """Check that a global batch divides into equal micro-batches for every process.

    Raises:
        ValueError: it does not; the message says which device batches would do.
    """
    per_process, rest = divmod(batch_size, world_size)
    if rest:
        raise ValueError(f"batch_size {batch_size} does not divide among {world_size} processes")
    size = per_process if device_batch is None else device_batch
    if per_process % size:
        fit = [d for d in range(1, per_process + 1) if per_process % d == 0]
        near = sorted(sorted(fit, key=lambda d: abs(d - size))[:3])
        raise ValueError(
            f"device_batch {size} does not divide {per_process}, which is batch_size {batch_size} / {world_size} "
            f"process{'es' if world_size > 1 else ''}: set device_batch to {' or '.join(map(str, near))}"
        )
    return MicroBatches(batch_size, size, world_size)


def batch_of_step(step: int, overfit_batches: int | None) -> int:
    """Which global batch a step trains on: its own, or one of the first few, in turn."""
    return step % overfit_batches if overfit_batches else step


def seed_generators(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators (CPU and accelerators) with one number."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class SampleOrder(Protocol):
    """Which sample stands where."""

    def samples(self, positions: npt.NDArray[np.int64], repeats: int) -> Samples:
        """Epochs, images and repeat indices [B, 3] at positions [B] of the endless sequence of samples."""


class Order:
    """The order of N samples in every epoch: `images(epoch, offsets)`, a permutation that depends on (seed, epoch).

    `shard_sizes` are the numbers of samples stored in each shard. Windows of `window`
    shards, in the epoch's order of shards, are each permuted as a whole.
    """

    def __init__(self, shard_sizes: Sequence[int], *, window: int, seed: int) -> None:
        self.shard_sizes = np.asarray(shard_sizes, dtype=np.int64)
        self.firsts = np.cumsum(self.shard_sizes) - self.shard_sizes  # where each shard begins
        self.num_samples = int(self.shard_sizes.sum())
        self.window, self.seed = window, seed
        #: called with the shards that are read next
        self.prefetch: Callable[[Sequence[int]], None] | None = None
        self._epoch = -1
        self._shards = self._ends = np.empty(0, np.int64)
        self._window, self._samples = (-1, -1), np.empty(0, np.int64)

    def images(self, epoch: int, offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Sample indices [B] at offsets [B] of an epoch, each in [0, N)."""
        self._begin(epoch)
        windows = np.searchsorted(self._ends, offsets, side="right")  # [B]
        indices = np.empty_like(offsets)
        for window in np.unique(windows):
            in_window = windows == window
            begin = self._ends[window - 1] if window else 0
            indices[in_window] = self._permutation(epoch, int(window))[offsets[in_window] - begin]
        return indices

    def samples(self, positions: npt.NDArray[np.int64], repeats: int) -> Samples:
        """Epochs, images and repeat indices [B, 3] at positions [B] of the stream."""
        epochs, offsets = np.divmod(positions, self.num_samples)
        samples = np.stack([epochs, np.empty_like(epochs), offsets % repeats], axis=1)
        for epoch in np.unique(epochs):
            in_epoch = epochs == epoch
            samples[in_epoch, 1] = self.images(int(epoch), offsets[in_epoch] // repeats)
        return samples

    def shards(self, epoch: int, window: int) -> npt.NDArray[np.int64]:
        """The shards of a window and of the next one in the epoch, in that order."""
        self._begin(epoch)
        return self._shards[window * self.window : (window + 2) * self.window]

    def _begin(self, epoch: int) -> None:
        if epoch != self._epoch:
            self._shards = _permutation(len(self.shard_sizes), self.seed, "shards", epoch)
            ends = np.cumsum(self.shard_sizes[self._shards])
            self._ends = np.append(ends[self.window - 1 :: self.window], ends[-1:])
            self._epoch = epoch

    def _permutation(self, epoch: int, window: int) -> npt.NDArray[np.int64]:
        if self._window != (epoch, window):
            shards = self._shards[window * self.window : (window + 1) * self.window]
            inside = [
                np.arange(n) + first
                for n, first in zip(self.shard_sizes[shards], self.firsts[shards], strict=True)
            ]
            samples = np.concatenate(inside)
            self._samples = samples[_permutation(len(samples), self.seed, "order", epoch, window)]
            self._window = (epoch, window)
            if self.prefetch is not None:
                self.prefetch(self.shards(epoch, window).tolist())
        return self._samples


def _permutation(count: int, *parts: int | str) -> npt.NDArray[np.int64]:
    """A permutation of `count` numbers, seeded by `parts`; torch's, which stays the same from release to release."""
    generator = torch.Generator().manual_seed(derive_seed(*parts))
    return torch.randperm(count, generator=generator).numpy()


def refuse_several_labels(labels: npt.NDArray[np.int64]) -> None:
    """ValueError where labels are [B, L]: an image that has several belongs to no one class."""
    if labels.ndim > 1:
        raise ValueError(
            "sampling=balanced needs one label an image, and these have several: use sampling=null"
        )


class BalancedOrder(Order):
    """An order in which each class comes once among every K images, however many images it has.

    The stream is a row of rounds, each all K classes that have images, permuted by (seed, round). A class shows its
    images in turn, permuted anew whenever all were shown: passes of its own take the place of epochs, so an image that
    comes again is augmented otherwise. Nothing is kept between calls: a position needs the permutations of its round
    and of its classes alone. Reads go all over the set.

    Raises ValueError where images have several labels.
    """

    def __init__(self, labels: npt.NDArray[np.int64], *, seed: int) -> None:
        super().__init__([len(labels)], window=1, seed=seed)
        refuse_several_labels(labels)
        self._by_class = np.argsort(labels, kind="stable")
        self._counts = np.unique(labels, return_counts=True)[1]
        self._starts = np.cumsum(self._counts) - self._counts
        self._passes: dict[
            int, tuple[int, npt.NDArray[np.int64]]
        ] = {}  # of each class, the last pass asked for

    def samples(self, positions: npt.NDArray[np.int64], repeats: int) -> Samples:
        """Passes, images and repeat indices [B, 3] at positions [B] of the stream."""
        draws, repeat = np.divmod(positions, repeats)
        rounds, places = np.divmod(draws, len(self._counts))
        classes = np.empty_like(rounds)
        for each in np.unique(rounds):
            here = rounds == each
            classes[here] = _permutation(len(self._counts), self.seed, "classes", int(each))[places[here]]
        passes, turns = np.divmod(rounds, self._counts[classes])
        found = [self._image(int(k), int(p), int(t)) for k, p, t in zip(classes, passes, turns, strict=True)]
        return np.stack([passes, np.array(found, np.int64), repeat], axis=1)

    def _image(self, which: int, in_pass: int, turn: int) -> int:
        if self._passes.get(which, (-1,))[0] != in_pass:
            order = _permutation(int(self._counts[which]), self.seed, "class", which, in_pass)
            self._passes[which] = (in_pass, order)
        return int(self._by_class[self._starts[which] + self._passes[which][1][turn]])


class MicroBatchSampler:
    """The samples of one process: its micro-batches from `start_step` to `total_steps`, each [D, 3].

    With `repeats` R > 1 (repeated augmentation, arXiv 1901.09335), an epoch uses the first N / R samples of its
    order, each R times in a row, so that the repeats meet in one global batch. With `overfit_batches` all steps use
    that many first batches in turn. Its length is the number of micro-batches still to come.
    """

    def __init__(
        self,
        order: SampleOrder,
        *,
        micro_batches: MicroBatches,
        rank: int,
        start_step: int,
        total_steps: int,
        repeats: int = 1,
        overfit_batches: int | None = None,
    ) -> None:
        self.overfit_batches = overfit_batches
        self.order, self.micro_batches, self.rank = order, micro_batches, rank
        self.start_step, self.total_steps, self.repeats = start_step, total_steps, repeats
        # Where a batch gets its samples from: repeats as far apart as possible, or a micro-batch would be full of
        # copies and mixing would blend an image with itself.
        spread = [i for first in range(repeats) for i in range(first, micro_batches.batch_size, repeats)]
        self._spread = np.asarray(spread, dtype=np.int64)

    def __len__(self) -> int:
        return (self.total_steps - self.start_step) * self.micro_batches.accumulate

    def __iter__(self) -> Iterator[Samples]:
        batch_size, size, world_size = self.micro_batches
        for step in range(self.start_step, self.total_steps):
            number = batch_of_step(step, self.overfit_batches)
            for micro in range(self.micro_batches.accumulate):
                first = (micro * world_size + self.rank) * size
                positions = number * batch_size + self._spread[first : first + size]
                yield self.order.samples(positions, self.repeats)
