"""What a dashboard is told of a run when it is opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from mixer_lightning.config.recipe import Recipe
from mixer_lightning.loggers import PRETRAINING, TRANSFER, Labels
from mixer_lightning.reports import published
from mixer_lightning.targets import build, takes


def make_logger(node: Mapping[str, Any], recipe: Recipe, run_dir: Path) -> Logger:
    """A logger of a recipe; `labels` is for those that take it."""
    given: dict[str, Any] = {"run_dir": run_dir, "run_name": "/".join(run_dir.parts[-2:])}
    if takes(node["_target_"], "labels"):
        given["labels"] = labels_of(recipe)
    logger: Logger = build(node, **given)
    return logger


def labels_of(recipe: Recipe) -> Labels:
    """The group is the recipe's name; tags are experiment, model, data set, task, and the papers' tables.

    An experiment belongs to the tables with a row of its model trained on its data.
    """
    kind = PRETRAINING if recipe.checkpoint is None else TRANSFER
    experiment, model, data = (recipe.choices.get(group, "") for group in ("experiment", "model", "data"))
    tables = published.tables_of(model, data) if experiment and kind == PRETRAINING else []
    tags = [experiment, model, data, str(recipe.data.get("task") or ""), *tables]
    return Labels(recipe.name, kind, tuple(tag for tag in tags if tag))
