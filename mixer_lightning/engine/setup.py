"""The one assembly: what training and evaluation build of a recipe, in the same order and with the same checks."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from mixer_lightning.checkpoints import hub
from mixer_lightning.checkpoints.families import TIMM_SCHEME
from mixer_lightning.checkpoints.load import Head, Report, load, widen_like
from mixer_lightning.checkpoints.read import read
from mixer_lightning.config.recipe import EvaluationRecipe, Recipe
from mixer_lightning.data import splits
from mixer_lightning.data.checks import refuse_random_reads
from mixer_lightning.data.order import MicroBatches, refuse_several_labels, seed_generators
from mixer_lightning.data.sources import Dataset
from mixer_lightning.data.stateless_random import derive_seed
from mixer_lightning.data.transforms import Augment
from mixer_lightning.engine.classifier import Classifier
from mixer_lightning.engine.datamodule import DataModule
from mixer_lightning.engine.length import Length
from mixer_lightning.engine.lightning_logger import RunLogger
from mixer_lightning.engine.machine import Machine
from mixer_lightning.engine.source import open_data
from mixer_lightning.evals import Eval, checked_eval, uses_head
from mixer_lightning.models.mixer import Mixer
from mixer_lightning.models.presets import refuse_too_large
from mixer_lightning.models.resolution import widen
from mixer_lightning.optim.groups import freeze
from mixer_lightning.screen import last_line
from mixer_lightning.targets import build


@dataclass(frozen=True)
class Assembly:
    """The parts that training and evaluation share. `report` says what became of a checkpoint to start from."""

    machine: Machine
    source: Dataset
    model: nn.Module
    augment: Augment
    evals: dict[str, Eval]
    report: Report | None

    def headline(self, model_name: str, detail: str) -> str:
        """The line that a run begins with: data, model, machine."""
        counts = "  ".join(f"{len(images):,} {split}" for split, images in self.source.splits.items())
        data = f"{self.source.name}  {counts}  {len(self.source.classes):,} classes"
        return f"{data}     {model_name or type(self.model).__name__} {detail}     {self.machine}"


def assemble(
    recipe: Recipe | EvaluationRecipe,
    *,
    head: Head,
    stochastic_depth: float = 0.0,
    head_bias: float = 0.0,
    trained: Mapping[str, torch.Tensor] | None = None,
) -> Assembly:
    """Build and check the parts; `head` says what becomes of that of a checkpoint.

    Of a run that goes on, `trained` are its weights: the checkpoint that it began with is not read, and may be gone.

    Raises:
        ValueError, OSError: something in the recipe, the data or the checkpoint is wrong; the message says what.
    """
    machine: Machine = build(recipe.trainer)
    machine.configure_torch()
    source = open_data(recipe)
    evals = {name: checked_eval(name, build(node)) for name, node in recipe.evals.items()}
    checkpoint = read(recipe.checkpoint) if recipe.checkpoint is not None and trained is None else None
    names = checkpoint.classes if checkpoint is not None and any(map(uses_head, evals.values())) else None
    if names is not None and isinstance(recipe, EvaluationRecipe):
        source = splits.by_class_names(source, names)
    for name, evaluation in evals.items():
        try:
            evaluation.check(source)
        except ValueError as error:
            raise ValueError(f"evals.{name}: {error}") from error
    model = new_model(
        recipe, num_classes=len(source.classes), stochastic_depth=stochastic_depth, head_bias=head_bias
    )
    report = None
    if checkpoint is not None:
        report = load(model, checkpoint, head=head, classes=source.classes)
    elif trained is not None:
        widen_like(model, trained)
    return Assembly(machine, source, model, build(recipe.augment), evals, report)


def as_begun(recipe: Recipe, *, num_classes: int) -> nn.Module:
    """The model with the sizes that a run begins with: a checkpoint for smaller images widens a Mixer's token mixing.

    Nothing is fetched: of timm's weights the size that they were trained at is known.

    Raises:
        ValueError, FileNotFoundError: there is no such model or checkpoint, or it is of another model.
    """
    model = new_model(
        recipe,
        num_classes=num_classes,
        stochastic_depth=recipe.stochastic_depth,
        head_bias=recipe.head_bias,
    )
    if recipe.checkpoint is None:
        return model
    if not recipe.checkpoint.startswith(TIMM_SCHEME):
        load(model, recipe.checkpoint, head="new")
    elif isinstance(model, Mixer):
        trained_at = hub.image_size(recipe.checkpoint.removeprefix(TIMM_SCHEME))
        widen(model, parts=max(1, recipe.image_size // trained_at))
    return model


def new_model(
    recipe: Recipe | EvaluationRecipe, *, num_classes: int, stochastic_depth: float, head_bias: float
) -> nn.Module:
    """The recipe's backbone as its seed initialises it.

    Raises:
        ValueError: there is no such model: sizes that contradict each other, or more than the memory holds.
    """

    def make() -> nn.Module:
        model: nn.Module = build(
            recipe.model,
            num_classes=num_classes,
            image_size=recipe.image_size,
            stochastic_depth=stochastic_depth,
            head_bias=head_bias,
        )
        return model

    try:
        refuse_too_large(make, num_classes=num_classes, image_size=recipe.image_size)
        seed_generators(derive_seed(recipe.seed, "init"))
        return make()
    except (ArithmeticError, RuntimeError, MemoryError) as error:
        sizes = ", ".join(f"{key}={value}" for key, value in recipe.model.items() if key != "_target_")
        raise ValueError(f"model: cannot be built with {sizes}: {last_line(error)}") from error


def classifier(
    recipe: Recipe,
    model: nn.Module,
    machine: Machine,
    length: Length,
    *,
    class_counts: torch.Tensor | None = None,
) -> Classifier:
    """The LightningModule of a recipe around a model; `class_counts` [K] is for a loss that weighs by them.

    Raises:
        ValueError: the schedule does not take a run of this length.
    """
    schedule = functools.partial(
        build(recipe.schedule), total_steps=length.schedule_steps, steps_per_epoch=length.steps_per_epoch
    )
    for step in (0, length.schedule_steps - 1):
        schedule(step)
    return Classifier(
        model,
        loss=build(recipe.loss, **({} if class_counts is None else {"class_counts": class_counts})),
        optimizer=build(recipe.optimizer),
        schedule=schedule,
        micro_batches=length.micro_batches,
        machine=machine,
        clip_grad_norm=recipe.clip_grad_norm,
        ema_decay=recipe.ema_decay,
        frozen=freeze(model, recipe.freeze or []),
    )


def class_counts(recipe: Recipe, source: Dataset) -> torch.Tensor | None:
    """Training images of each class [K], where the loss weighs by them; one with several labels counts for each.

    Raises:
        ValueError: balanced sampling is asked for, and images have several labels or would be fetched one by one.
    """
    if recipe.sampling is not None:
        refuse_several_labels(source.splits["train"].labels(np.arange(1)))
        refuse_random_reads(source.splits["train"])
    if recipe.loss.get("class_weights") != "balanced":
        return None
    return torch.from_numpy(splits.class_counts(source))


def data_module(
    source: Dataset,
    augment: Augment,
    machine: Machine,
    *,
    image_size: int,
    micro_batches: MicroBatches,
    total_steps: int = 0,
    seed: int = 0,
    repeats: int = 1,
    sampling: Literal["balanced"] | None = None,
    shuffle_window: int = 1,
    max_bad_fraction: float = 0.0,
    overfit_batches: int | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> DataModule:
    """Batches of a data set for this process of a machine."""
    return DataModule(
        source,
        augment,
        image_size=image_size,
        micro_batches=micro_batches,
        total_steps=total_steps,
        seed=seed,
        repeats=repeats,
        sampling=sampling,
        shuffle_window=shuffle_window,
        max_bad_fraction=max_bad_fraction,
        overfit_batches=overfit_batches,
        rank=machine.rank,
        threads=machine.threads,
        ahead=machine.batches_ahead,
        decode_on=machine.decode_device,
        pin_memory=machine.device_type == "cuda",
        memory_format=memory_format,
    )


def lightning_trainer(
    machine: Machine,
    *,
    steps: int,
    accumulate: int,
    callbacks: list[Callback],
    run_dir: Path | None,
    logger: RunLogger | None = None,
    log_every_steps: int = 50,
) -> Trainer:
    """Lightning's Trainer for one pass of `steps` optimiser steps; evaluation, logging and saving are callbacks'.

    `logger` is for those callbacks of Lightning that log by themselves, every so many steps.
    """
    trainer = Trainer(
        accelerator="gpu" if machine.device_type == "cuda" else "cpu",
        devices=machine.local_world_size,
        num_nodes=machine.num_nodes,
        strategy=machine.strategy(),
        plugins=machine.plugins(),
        precision=machine.chosen_precision,
        max_epochs=1,
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        callbacks=callbacks,
        logger=logger or False,  # MetricsLog feeds the dashboards: it knows the step of the whole run
        log_every_n_steps=log_every_steps,
        profiler=machine.lightning_profiler(run_dir),
        default_root_dir=run_dir,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
    )
    # Being asked to stop is Preemption's, for all processes and signals. Lightning's own handler of SIGTERM talks to
    # the other processes in the midst of whatever they do, so that all wait for each other; and it asks the device
    # before every micro-batch whether process 0 got one.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    if machine.world_size > 1:
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    return trainer
