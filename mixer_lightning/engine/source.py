"""The data set of a recipe. Without torch: a finished run looks at its data and says so at once."""

from __future__ import annotations

from mixer_lightning.config.recipe import EvaluationRecipe, Recipe
from mixer_lightning.data import splits
from mixer_lightning.data.sources import Dataset
from mixer_lightning.targets import build


def open_data(recipe: Recipe | EvaluationRecipe) -> Dataset:
    """The data set of a recipe, with its splits.

    Raises:
        ValueError, OSError: it is not there, or has no such splits.
    """
    return splits.choose(
        build(recipe.data),
        train=recipe.train_split,
        val=recipe.val_split,
        test=recipe.test_split,
        training=isinstance(recipe, Recipe),
    )
