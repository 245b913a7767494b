"""What a program is told: the typed recipes, whose roots answer to dataclasses. Defaults stand in conf/*.yaml."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

import yaml

from mixer_lightning.config.signatures import defaults
from mixer_lightning.ranges import BelowOne, PositiveFloat, PositiveInt
from mixer_lightning.results import differing_keys

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
    "loss": {"logits": None, "targets": None, "class_counts": None},
    "logger": {"run_dir": "hydra.run.dir", "run_name": "name", "labels": None},
}
BAGS = ("evals", "callbacks", "logger")  # named collections of nodes; everything else is one node
PARTIALS = ("optimizer", "schedule", "loss")  # called at every step: their nodes say `_partial_: true`


@dataclass(frozen=True)
class Duration:
    """A length of training: optimiser steps, or epochs (passes over the training set); exactly one."""

    epochs: PositiveFloat | None = None
    steps: PositiveInt | None = None

    def to_steps(self, steps_per_epoch: float) -> int:
        """Length in optimiser steps, at least 1."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, round(self.epochs * steps_per_epoch))

    def __str__(self) -> str:
        return f"{self.steps:,} steps" if self.steps is not None else f"{self.epochs:g} epochs"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A composed and checked config of training: everything that a run needs to know."""

    name: str
    seed: int
    checkpoint: str | None  # weights to start from
    image_size: PositiveInt
    batch_size: PositiveInt  # global: over all devices and accumulated micro-batches
    #: per device and micro-batch; None: batch_size / number of devices; auto: the largest that fits a GPU's memory
    device_batch: PositiveInt | Literal["auto"] | None
    duration: Duration
    steps_per_epoch: Literal["floor", "ceil"] | None  # rounding of images / batch_size; None: not rounded
    eval_every: Duration
    checkpoint_every: Duration
    checkpoint_minutes: PositiveFloat | None  # and after so many minutes
    log_every_steps: PositiveInt
    fast_dev_run: bool | PositiveInt | None  # so many batches through everything, and nothing is kept
    overfit_batches: PositiveInt | None  # train on so many batches again and again
    clip_grad_norm: PositiveFloat | None
    ema_decay: BelowOne | None
    stochastic_depth: BelowOne
    head_bias: float
    freeze: list[str] | None  # parts of the model that are not trained; [backbone]: all but the head
    repeats: PositiveInt  # repeated augmentation: each sample of a batch this many times
    sampling: Literal["balanced"] | None  # None: each image once an epoch
    train_split: str  # "train", or a slice by hash, "train[:99%]", or "train+val": see data/splits.py
    val_split: str | None
    test_split: str | None
    shuffle_window: PositiveInt  # shards among which samples are shuffled
    max_bad_fraction: BelowOne  # of the training images: so many may be unreadable
    model: dict[str, Any]
    data: dict[str, Any]
    augment: dict[str, Any]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    loss: dict[str, Any]
    evals: dict[str, Any]
    callbacks: dict[str, Any]  # further callbacks of Lightning
    trainer: dict[str, Any]
    logger: dict[str, Any]
    choices: dict[str, str]  # the file taken from each group of conf/

    def optimizer_steps_per_epoch(self, num_images: int) -> float:
        """Optimiser steps that count as an epoch in `duration`, the schedule and so on; 1 at least if rounded.

        Samples are not left out for it: the next epoch begins where one ends (data/order.py).
        """
        steps = num_images / self.batch_size
        if self.steps_per_epoch is None:
            return steps
        return max(1.0, float(math.floor(steps) if self.steps_per_epoch == "floor" else math.ceil(steps)))

    def to_dict(self) -> dict[str, Any]:
        """Plain containers only, in the order of the fields: for recipe.yaml, checkpoints and comparison."""
        return _to_dict(self)

    def to_yaml(self) -> str:
        """recipe.yaml: the whole resolved recipe."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


@dataclass(frozen=True, kw_only=True)
class EvaluationRecipe:
    """A composed and checked config of an evaluation: a checkpoint, what it is shown, and what judges it."""

    name: str
    seed: int
    checkpoint: str | None  # None is refused by the program
    image_size: PositiveInt
    device_batch: PositiveInt  # images of a forward pass
    train_split: str
    val_split: str | None
    test_split: str | None
    model: dict[str, Any]
    data: dict[str, Any]
    augment: dict[str, Any]
    evals: dict[str, Any]
    trainer: dict[str, Any]
    choices: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain containers only, in the order of the fields: for evaluation.json."""
        return _to_dict(self)


AnyRecipe = TypeVar("AnyRecipe", Recipe, EvaluationRecipe)

#: Keys that may change between two sessions of the same run: the machine, the dashboards, how many images may be bad.
FREE_KEYS = (
    "trainer",
    "logger",
    "choices",
    "device_batch",
    "fast_dev_run",
    "checkpoint_minutes",
    "max_bad_fraction",
    "data.root",
    "data.download",
    "data.verify",
    "data.cache",
    "data.cache_bytes",
)


def _with_defaults(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """`before`, and in its nodes the defaults of those keys that only `now` has."""
    filled = dict(before)
    for key, here in now.items():
        if isinstance(here, Mapping) and isinstance(before.get(key), Mapping):
            filled[key] = _with_defaults(before[key], here)
    target = now.get("_target_")
    if isinstance(target, str) and before.get("_target_") == target:
        with contextlib.suppress(ValueError):  # nobody has that callable any more
            filled |= {k: v for k, v in defaults(target).items() if k in now and k not in before}
    return filled


def refuse_differences(
    what: str, before: Mapping[str, Any], now: Mapping[str, Any], *, free: Sequence[str] = ()
) -> None:
    """See that two recipes of one directory are the same but for FREE_KEYS and `free`. A key that one lacks is null.

    What a node of `before` lacks had the default of its callable: an earlier version may not have known it.

    Raises:
        ValueError: they are not; `what` the directory holds, with the keys that differ.
    """
    changes = [
        change
        for change in differing_keys(_with_defaults(before, now), now, ignore=(*FREE_KEYS, *free))
        if change[1:] != (None, None)
    ]
    if changes:
        lines = [f"  {name}: {was!r} there, {here!r} here" for name, was, here in changes]
        remedy = "Give this one a name of its own (name=<word>), or delete that directory."
        raise ValueError("\n".join([f"{what}:", *lines, remedy]))


def load_recipe(root: type[AnyRecipe], values: Mapping[str, Any]) -> AnyRecipe:
    """The typed recipe of plain values, `choices` among them, that `check` found nothing wrong with."""
    typed = dict(values)
    for f in fields(root):
        if f.type == "Duration":
            given = {unit: amount for unit, amount in typed[f.name].items() if amount is not None}
            typed[f.name] = Duration(**given)
    return root(**typed)


def _to_dict(recipe: Recipe | EvaluationRecipe) -> dict[str, Any]:
    return {f.name: _plain(getattr(recipe, f.name)) for f in fields(recipe)}


def _plain(value: Any) -> Any:
    if isinstance(value, Duration):
        return {key: v for key, v in (("epochs", value.epochs), ("steps", value.steps)) if v is not None}
    return value
