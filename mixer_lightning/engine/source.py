"""The data set of a recipe. Without torch: a finished run looks at its data and says so at once."""

from __future__ import annotations

from mixer_lightning.config.recipe import EvaluationRecipe, Recipe
from mixer_lightning.data import splits
from mixer_lightning.data.sources import Dataset
from mixer_lightning.targets import build

#: Images of a forward pass in evaluations, whose results do not depend on it.
LARGEST_EVAL_BATCH = 256


def open_data(recipe: Recipe | EvaluationRecipe) -> Dataset:
    """The data set of a recipe, with its splits.

    Raises:
        ValueError, OSError: it is not there, or has no such splits.
    """
    data = splits.choose(
        build(recipe.data),
        train=recipe.train_split,
        val=recipe.val_split,
        test=recipe.test_split,
        training=isinstance(recipe, Recipe),
    )
    if isinstance(recipe, Recipe) and recipe.fast_dev_run:
        one = recipe.device_batch if isinstance(recipe.device_batch, int) else recipe.batch_size
        data = splits.with_few_to_evaluate(data, int(recipe.fast_dev_run) * min(one, LARGEST_EVAL_BATCH))
    return data
