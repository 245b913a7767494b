"""device_batch=auto: the largest one that a GPU's memory holds, found by training steps on random images.

Lightning's BatchSizeFinder changes the batch that a step is made of; here that is the recipe's, and only its parts may
change. What is found divides the share of one process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import nn

from mixer_lightning import launcher
from mixer_lightning.config.recipe import Recipe
from mixer_lightning.data.order import split_batch
from mixer_lightning.engine.distributed import gather_objects
from mixer_lightning.engine.machine import Machine
from mixer_lightning.engine.memory import release_memory
from mixer_lightning.engine.throughput import training_rate
from mixer_lightning.targets import build

#: Of a GPU's memory; the rest is for evaluations, fragments and images on their way.
SHARE = 0.9


def settle_device_batch(
    recipe: Recipe,
    machine: Machine,
    *,
    model: nn.Module,
    num_classes: int,
    before: int | None,
    say: Callable[[str], None],
) -> Recipe:
    """The recipe with a number where it says device_batch=auto; `before` is that of an earlier session, which stays.

    `model` is the run's, and tried ones are of its sizes.

    The first process finds it, on its GPU; the others take it over.

    Raises:
        ValueError: there is no GPU, or not even one image fits.
    """
    if recipe.device_batch != "auto":
        return recipe
    share = split_batch(
        batch_size=recipe.batch_size, device_batch=None, world_size=machine.world_size
    ).device_batch
    if before is not None and share % before == 0:
        return dataclasses.replace(recipe, device_batch=before)
    if machine.device_type == "cpu":
        raise ValueError(
            "device_batch=auto looks for what fits the memory of a GPU, and this run has none: state a number, or "
            "leave it out"
        )
    sizes = [size for size in range(1, share + 1) if share % size == 0]
    found = 0
    if machine.rank == 0:
        found = largest_fitting(sizes, lambda size: fits(recipe, size, model=model, num_classes=num_classes))
    machine.init_process_group()
    found = gather_objects(found)[0]
    if not found:
        raise ValueError(
            "device_batch=auto: not even one image fits the memory of the GPU. Use a smaller model"
        )
    say(f"device_batch=auto: {found:,}, of which a batch of {recipe.batch_size:,} is accumulated")
    return dataclasses.replace(recipe, device_batch=found)


def largest_fitting(sizes: Sequence[int], fits: Callable[[int], bool]) -> int:
    """The largest of rising `sizes` that fits, by bisection; 0 where none does."""
    low, high = 0, len(sizes)  # sizes[:low] fit, sizes[high:] do not
    while low < high:
        middle = (low + high) // 2
        if fits(sizes[middle]):
            low = middle + 1
        else:
            high = middle
    return sizes[low - 1] if low else 0


def fits(recipe: Recipe, size: int, *, model: nn.Module, num_classes: int) -> bool:
    """Whether some training steps of `size` images run within SHARE of the memory of one GPU."""
    alone = dataclasses.replace(
        recipe,
        device_batch=size,
        trainer=recipe.trainer | {"devices": 1, "compile": False, "profiler": None},
    )
    with launcher.ignored():
        machine: Machine = build(alone.trainer)
        _limit_memory(machine, SHARE)
        try:
            # two of them a step: gradients of the first are there while the second runs
            training_rate(alone, seconds=0.0, num_classes=num_classes, accumulate=2, like=model)
        except torch.OutOfMemoryError:
            return False
        finally:
            release_memory(machine)
            _limit_memory(machine, 1.0)
    return True


def _limit_memory(machine: Machine, share: float) -> None:
    if machine.device_type == "cuda":
        torch.cuda.set_per_process_memory_fraction(share, machine.device)
