"""What a training would take: steps, work, time, memory, disk and money, before any of it is spent."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from mixer_lightning.config.recipe import Recipe
from mixer_lightning.data.sources import Dataset
from mixer_lightning.data.splits import refuse_one_class
from mixer_lightning.engine.length import length_of
from mixer_lightning.engine.machine import Machine
from mixer_lightning.engine.memory import PeakMemory
from mixer_lightning.engine.setup import as_begun
from mixer_lightning.engine.source import open_data
from mixer_lightning.engine.throughput import training_rate
from mixer_lightning.evals import is_at_end
from mixer_lightning.launcher import launched
from mixer_lightning.models.presets import PASSES, count_macs
from mixer_lightning.studies.transfer_plan import format_time
from mixer_lightning.targets import build

BYTES_PER_NUMBER = 4


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A training on `devices` devices like the one here, on which `rate` was measured.

    rate: training images per second and device.
    macs: multiply-accumulates of an image, forward.
    eval_images: looked at in all evaluations together.
    memory_bytes: that a training step takes of a device at `device_batch` images; None where nothing tells.
    shared_bytes: of these, a device's part of what is shared out over all: parameters, gradients and the optimiser's
        moments; 0 where each device has them whole.
    numbers_per_weight: kept for each of `parameters` in last.ckpt: itself, the optimiser's moments, its average.
    price: of a device for an hour.
    """

    images: int
    num_classes: int
    batch_size: int
    device_batch: int
    steps: int
    steps_per_epoch: float
    parameters: int
    macs: int
    rate: float
    eval_images: int
    memory_bytes: int | None
    shared_bytes: int
    numbers_per_weight: int
    devices: int
    price: float | None

    @property
    def samples(self) -> int:
        """Images trained on, with repetition."""
        return self.steps * self.batch_size

    @property
    def device_seconds(self) -> float:
        """Of training and evaluations, on all devices together."""
        return (self.samples + self.eval_images * PASSES["inference"] / PASSES["training"]) / self.rate

    @property
    def disk_bytes(self) -> int:
        """Of last.ckpt, previous.ckpt, one that is being written, and best.ckpt."""
        return self.parameters * BYTES_PER_NUMBER * (3 * self.numbers_per_weight + 1)

    def rows(self) -> list[tuple[str, str]]:
        """What there is to say, line by line."""
        days, wall = self.device_seconds / 86400, self.device_seconds / self.devices
        many = f" on {self.devices:,} devices, if they scale perfectly" if self.devices > 1 else ""
        work = PASSES["training"] * self.macs * self.samples
        epochs = f"{self.steps / self.steps_per_epoch:.4g} epochs of {self.images:,}"
        found = [
            (
                "model",
                f"{self.parameters:,} parameters, {self.macs / 1e9:.3g} GMACs an image, {self.num_classes:,} classes",
            ),
            ("steps", f"{self.steps:,} of {self.batch_size:,} images: {epochs}"),
            ("images", f"{self.samples:,} trained on, {self.eval_images:,} evaluated"),
            (
                "work",
                f"{work:.3g} multiply-accumulates of training (forward, backward)",
            ),
            (
                "rate",
                f"{_digits(self.rate)} images/s of a device, measured here; reading and decoding not counted",
            ),
            ("time", f"{format_time(wall)}{many}; {_digits(days)} device-days"),
        ]
        if self.memory_bytes is not None:
            whole = f"{self.memory_bytes / 1e9:.2f} GB at {self.device_batch:,} images, measured here"
            part = f"{self.shared_bytes / 1e9:.2g} GB of it is a device's part of parameters, gradients and moments"
            found.append(("memory", f"{whole}; {part}" if self.shared_bytes else whole))
        found.append(("disk", f"{self.disk_bytes / 1e9:.2g} GB of checkpoints"))
        if self.price is not None:
            found.append(
                ("cost", f"{self.price * self.device_seconds / 3600:,.2f} at {self.price:g} a device hour")
            )
        return found


def plan_of(
    recipe: Recipe,
    *,
    images: int | None,
    num_classes: int | None,
    devices: int | None,
    price: float | None,
    say: Callable[[str], object],
    seconds: float = 5.0,
) -> Plan:
    """Count and measure; nothing is downloaded or begun.

    Args:
        recipe: of the training.
        images: of the training set, where the data are not here; evaluations are then left out.
        num_classes: with `images`.
        devices: like the one here; None: as many as were launched, or as the trainer has.
        price: of a device for an hour.
        say: is told when the measuring begins.
        seconds: for which training steps are measured.

    Raises:
        ValueError, OSError: something in the recipe or the data is wrong; the message says what.
    """
    devices, trainer = devices or _num_devices(recipe), recipe.trainer
    if launched() is None:  # one device is measured, whatever the trainer has
        trainer = {**recipe.trainer, "devices": 1}
    machine: Machine = build(trainer)
    evaluated = 0
    if images is None:
        try:
            source = _data_that_are_here(recipe)
        except FileNotFoundError as error:
            without = "Or plan without the data: plan.images=<of the training set> plan.classes=<classes>"
            raise FileNotFoundError(f"{error}\n{without}") from error
        refuse_one_class(source)
        images, num_classes = len(source.splits["train"]), len(source.classes)
        evaluated = sum(len(split) for name, split in source.splits.items() if name != "train")
    num_classes = num_classes or 1000
    length = length_of(recipe, num_images=images, world_size=devices)
    model = as_begun(recipe, num_classes=num_classes).to("meta")  # what is measured has the memory
    parameters = sum(each.numel() for each in model.parameters())
    say("measuring a few training steps")
    peak = PeakMemory(machine)
    peak.start()
    device_batch = length.micro_batches.device_batch
    steps = dataclasses.replace(recipe, device_batch=device_batch, trainer=trainer)
    # Gradients are there for the whole of a second forward and backward pass: the peak has them in it
    accumulate = 2 if length.micro_batches.accumulate > 1 or machine.fully_shard else 1
    rate = training_rate(steps, seconds=seconds, accumulate=accumulate, like=model)
    memory, shared = peak.bytes(), 0
    if machine.fully_shard:
        state = parameters * BYTES_PER_NUMBER * (2 + moments(recipe))
        shared = state // devices
        memory = None if memory is None else max(shared, memory - state // machine.world_size + shared)
    return Plan(
        images=images,
        num_classes=num_classes,
        batch_size=recipe.batch_size,
        device_batch=device_batch,
        steps=length.total_steps,
        steps_per_epoch=length.steps_per_epoch,
        parameters=parameters,
        macs=count_macs(model, image_size=recipe.image_size),
        rate=rate / machine.world_size,
        eval_images=evaluated * num_evaluations(recipe, length.total_steps, length.steps_per_epoch),
        memory_bytes=memory,
        shared_bytes=shared,
        numbers_per_weight=1 + moments(recipe) + (recipe.ema_decay is not None),
        devices=devices,
        price=price,
    )


def _data_that_are_here(recipe: Recipe) -> Dataset:
    if not recipe.data.get("download"):
        return open_data(recipe)
    try:
        return open_data(dataclasses.replace(recipe, data={**recipe.data, "download": False}))
    except FileNotFoundError as error:
        name = recipe.choices.get("data", "the data")
        raise FileNotFoundError(
            f"{name}: not in {recipe.data['root']}, and a plan downloads nothing"
        ) from error


def _num_devices(recipe: Recipe) -> int:
    """As many as were launched, or as the trainer has.

    Raises:
        ValueError: it has one for each process, and nothing was launched.
    """
    if launched() is not None:
        return int(build(recipe.trainer).world_size)
    devices = recipe.trainer.get("devices", 1)
    if devices is None:
        raise ValueError(
            "the trainer has as many devices as are launched: say for how many to plan, plan.devices=8"
        )
    return int(devices)


def num_evaluations(recipe: Recipe, total_steps: int, steps_per_epoch: float) -> int:
    """Passes over the evaluation images in a run: those during training, and what is left to its end."""
    evals = [build(node) for node in recipe.evals.values()]
    during = math.ceil(total_steps / recipe.eval_every.to_steps(steps_per_epoch))
    return sum(1 if is_at_end(each) else during for each in evals)


def moments(recipe: Recipe) -> int:
    """Numbers that the recipe's optimiser keeps for a weight, seen after a step on a layer of two by two."""
    layer = nn.Linear(2, 2)
    layer.head_name = "none"  # type: ignore[assignment]
    optimizer = build(recipe.optimizer)(nn.Sequential(layer))
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = optimizer.state[layer.weight]
    return sum(isinstance(each, torch.Tensor) and each.shape == layer.weight.shape for each in state.values())


def _digits(value: float) -> str:
    """Three digits, and all of those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
