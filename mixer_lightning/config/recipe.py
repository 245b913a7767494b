"""What a run is told: the typed recipe, whose root answers to a dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import yaml

#: What the code supplies when it builds a node, and where a user sets it instead (None: nowhere).
RUNTIME_ARGS: dict[str, dict[str, str | None]] = {
    "model": {
        "num_classes": None,
        "image_size": "image_size",
        "stochastic_depth": "stochastic_depth",
        "head_bias": "head_bias",
    },
    "optimizer": {"model": None},
    "schedule": {"step": None, "total_steps": "duration", "steps_per_epoch": None},
    "loss": {"logits": None, "targets": None},
    "logger": {"run_dir": "hydra.run.dir", "run_name": "name"},
}
BAGS = ("evals", "logger")  # named collections of nodes; everything else is one node
PARTIALS = ("optimizer", "schedule", "loss")  # called at every step: their nodes say `_partial_: true`


@dataclass(frozen=True)
class Duration:
    """A length of training: optimiser steps, or epochs (passes over the training set); exactly one."""

    epochs: float | None = None
    steps: int | None = None

    def to_steps(self, steps_per_epoch: float) -> int:
        """Length in optimiser steps, at least 1."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, round(self.epochs * steps_per_epoch))

    def __str__(self) -> str:
        return f"{self.steps:,} steps" if self.steps is not None else f"{self.epochs:g} epochs"


@dataclass(frozen=True)
class Recipe:
    """A composed and checked config: everything that a run needs to know."""

    image_size: int
    batch_size: int  # global: over all devices and accumulated micro-batches
    duration: Duration
    model: dict[str, Any]
    data: dict[str, Any]
    augment: dict[str, Any]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    loss: dict[str, Any]
    trainer: dict[str, Any]
    name: str = "default"
    seed: int = 0
    device_batch: int | None = None  # per device and micro-batch; None: batch_size / number of devices
    eval_every: Duration = Duration(epochs=1)
    checkpoint_every: Duration = Duration(epochs=1)
    log_every_steps: int = 20
    clip_grad_norm: float | None = None
    ema_decay: float | None = None
    stochastic_depth: float = 0.0
    head_bias: float = 0.0
    repeats: int = 1  # repeated augmentation: each sample of a batch this many times
    train_split: str = "train"  # or a slice by hash, "train[:99%]", or "train+val": see data/splits.py
    val_split: str | None = None
    test_split: str | None = None
    shuffle_window: int = 32  # shards among which samples are shuffled
    max_bad_fraction: float = 0.001  # of the training images: so many may be unreadable
    checkpoint: str | None = None  # weights to start from
    evals: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, str] = field(default_factory=dict)  # the file taken from each group of conf/

    def to_dict(self) -> dict[str, Any]:
        """Plain containers only, in the order of the fields: for recipe.yaml, checkpoints and comparison."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    def to_yaml(self) -> str:
        """recipe.yaml: the whole resolved recipe."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


#: Keys that may change between two sittings of the same run: the machine and the dashboards, not the recipe.
FREE_KEYS = (
    "trainer",
    "logger",
    "choices",
    "device_batch",
    "data.root",
    "data.download",
    "data.verify",
    "data.cache",
    "data.cache_bytes",
)


def _plain(value: Any) -> Any:
    if isinstance(value, Duration):
        return {key: v for key, v in (("epochs", value.epochs), ("steps", value.steps)) if v is not None}
    return value


class Job(NamedTuple):
    """One composed job of a command line."""

    recipe: dict[str, Any]
    choices: dict[str, str]
    run_dir: Path


def load_recipe(job: Job) -> Recipe:
    """The typed recipe of a job that `check` found nothing wrong with."""
    values = dict(job.recipe)
    for f in fields(Recipe):
        if f.type == "Duration" and f.name in values:
            given = {unit: amount for unit, amount in values[f.name].items() if amount is not None}
            values[f.name] = Duration(**given)
    return Recipe(**values, choices=job.choices)
