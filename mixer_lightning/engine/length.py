"""How long a run is, and whether one that has begun may become longer."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mixer_lightning.config.recipe import Duration, Recipe
from mixer_lightning.data.order import MicroBatches, split_batch
from mixer_lightning.targets import build


class Length(NamedTuple):
    """How long a run is, and how its batches are made up."""

    micro_batches: MicroBatches
    steps_per_epoch: float
    total_steps: int
    schedule_steps: int  # that the schedule is made for: more, where only a few are tried


def length_of(recipe: Recipe, *, num_images: int, world_size: int) -> Length:
    """The length of a run on so many training images, by so many processes.

    With `fast_dev_run` it is so many steps, each of one forward pass per process.

    Raises:
        ValueError: the processes cannot share its batches.
    """
    refuse_auto(recipe)
    device_batch = None if recipe.device_batch is None else int(recipe.device_batch)
    micro_batches = split_batch(
        batch_size=recipe.batch_size, device_batch=device_batch, world_size=world_size
    )
    steps_per_epoch = recipe.optimizer_steps_per_epoch(num_images)
    planned = total = recipe.duration.to_steps(steps_per_epoch)
    if recipe.fast_dev_run:
        micro_batches = micro_batches._replace(batch_size=micro_batches.device_batch * world_size)
        total = min(planned, int(recipe.fast_dev_run))
    return Length(micro_batches, steps_per_epoch, total, planned)


def refuse_auto(recipe: Recipe) -> None:
    """ValueError where nobody has looked for the device_batch that fits."""
    if recipe.device_batch == "auto":
        raise ValueError("device_batch=auto is found when a training starts on its GPU: state a number here")


def refuse_another_length(recipe: Recipe, state: Mapping[str, Any], length: Length, run_dir: Path) -> None:
    """See that a run whose `state` is stored may end where `recipe` says: a longer run would have been the same so far.

    Raises:
        ValueError: it is shorter than what has been trained, or its schedule would have had other rates.
    """
    there, here = Duration(**state["recipe"]["duration"]), recipe.duration
    before, now, done = there.to_steps(length.steps_per_epoch), length.total_steps, int(state["step"])
    if now == before:
        return
    what = f"{run_dir} has trained {done:,} steps of {there}, and duration is {here} here"
    if now <= done:
        raise ValueError(f"{what}, which it is past. Give a longer one, or name=<word> for a run of its own")
    rates = [
        functools.partial(build(recipe.schedule), total_steps=steps, steps_per_epoch=length.steps_per_epoch)
        for steps in (before, now)
    ]
    steps = range(0, done, max(1, done // 10_000))
    if any(rates[0](step) != rates[1](step) for step in steps):
        checkpoint = shlex.quote(f"checkpoint={run_dir}")
        raise ValueError(
            f"{what}, but its schedule depends on the length: it would have had other rates from the start. Use "
            f"schedule=constant for runs that may be made longer. To train on from the weights of this one: "
            f"{checkpoint} name=<word>, with a duration and rates of its own"
        )
