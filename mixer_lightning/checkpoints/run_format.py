"""Where weights stand in last.ckpt and best.ckpt, the checkpoints of this project's own runs.

Both are a dictionary with the `recipe`, the data's `classes`, the `step`, and a `state_dict` whose names begin with
`model.`, as Lightning has them. last.ckpt, which alone holds what training needs (engine/checkpoint.py), keeps
averaged weights beside those that are trained, under `ema` and without the prefix. Importing this module does not
import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mixer_lightning.results import RECIPE

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "model."


def is_run(content: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is of one of our own runs."""
    return "recipe" in content and isinstance(content.get("state_dict"), Mapping)


def with_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """The entry of a checkpoint that holds a backbone's weights."""
    return {"state_dict": {f"{PREFIX}{name}": value for name, value in state_dict.items()}}


def trained_weights(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights that were trained, under the backbone's names."""
    state: Mapping[str, Tensor] = content["state_dict"]
    return {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}


def evaluated_weights(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights that were evaluated: averaged, where the run averaged."""
    return {**trained_weights(content), **(content.get("ema") or {})}


def recipe_beside(path: Path) -> dict[str, Any] | None:
    """The recipe of the run directory that a path is, or in which it lies; None without a readable one."""
    folder = path if path.is_dir() else path.parent
    try:
        recipe = yaml.safe_load((folder / RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None
    wanted = {"model", "augment", "image_size"}
    return recipe if isinstance(recipe, dict) and wanted <= recipe.keys() else None
