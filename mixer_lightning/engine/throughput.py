"""How fast this machine trains a recipe: the rate behind a plan."""

from __future__ import annotations

import time

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import nn

from mixer_lightning.checkpoints.load import widen_like
from mixer_lightning.config.recipe import Recipe
from mixer_lightning.data.order import split_batch
from mixer_lightning.data.sources import Dataset
from mixer_lightning.data.sources.arrays import Arrays
from mixer_lightning.engine import setup
from mixer_lightning.engine.callbacks import StepCallback
from mixer_lightning.engine.classifier import Classifier
from mixer_lightning.engine.length import Length, refuse_auto
from mixer_lightning.engine.machine import Machine
from mixer_lightning.targets import build

NUM_CLASSES = 100
MOST_STEPS = 1_000_000  # never reached


class _Stopwatch(StepCallback):
    """Times whole steps for some seconds, the first left out, which fills caches; then ends the fit."""

    def __init__(self, *, seconds: float) -> None:
        self.limit, self.steps, self.seconds, self._began = seconds, 0, 0.0, 0.0

    def on_step(self, trainer: Trainer, module: Classifier) -> None:
        """One step is done."""
        if module.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        if module.step == 1:
            self._began = now
            return
        self.steps, self.seconds = self.steps + 1, now - self._began
        if self.steps >= 2 and self.seconds >= self.limit:
            trainer.should_stop = True


def training_rate(
    recipe: Recipe,
    *,
    seconds: float = 5.0,
    num_classes: int = NUM_CLASSES,
    accumulate: int = 1,
    like: nn.Module | None = None,
) -> float:
    """Images per second of the recipe's training steps on this machine, measured for some seconds on random images.

    The steps are those of a run: cropping, augmentation, forward, backward, clipping, optimiser. Images are random
    pixels in memory, so that reading and decoding are not counted. Token mixing is as wide as that of `like`, else as
    the recipe's checkpoint makes it.
    """
    machine: Machine = build(recipe.trainer)
    machine.configure_torch()
    refuse_auto(recipe)
    batch = min(recipe.batch_size, int(recipe.device_batch or recipe.batch_size))
    micro_batches = split_batch(
        batch_size=accumulate * batch * machine.world_size, device_batch=batch, world_size=machine.world_size
    )
    generator = np.random.default_rng(0)
    shape = (micro_batches.batch_size, recipe.image_size, recipe.image_size, 3)
    images = Arrays(
        "random pixels",
        generator.integers(0, 256, shape, dtype=np.uint8),
        generator.integers(0, num_classes, shape[0]),
    )
    source = Dataset("random pixels", [str(label) for label in range(num_classes)], {"train": images})
    if like is None:
        model = setup.as_begun(recipe, num_classes=num_classes)
    else:
        model = setup.new_model(
            recipe,
            num_classes=num_classes,
            stochastic_depth=recipe.stochastic_depth,
            head_bias=recipe.head_bias,
        )
        widen_like(model, like.state_dict())
    module = setup.classifier(
        recipe,
        model,
        machine,
        Length(micro_batches, steps_per_epoch=1.0, total_steps=MOST_STEPS, schedule_steps=MOST_STEPS),
        class_counts=torch.ones(num_classes) if recipe.loss.get("class_weights") == "balanced" else None,
    )
    data = setup.data_module(
        source,
        build(recipe.augment),
        machine,
        image_size=recipe.image_size,
        micro_batches=micro_batches,
        total_steps=MOST_STEPS,
        seed=recipe.seed,
        repeats=recipe.repeats,
        memory_format=module.memory_format,
    )
    stopwatch = _Stopwatch(seconds=seconds)
    trainer = setup.lightning_trainer(
        machine, steps=MOST_STEPS, accumulate=accumulate, callbacks=[stopwatch], run_dir=None
    )
    try:
        trainer.fit(module, datamodule=data)
    finally:
        data.close()
    return stopwatch.steps * micro_batches.batch_size / stopwatch.seconds
