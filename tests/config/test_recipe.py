"""The typed recipe and its durations."""

from __future__ import annotations

import yaml

from mixer_lightning.config.check import check
from mixer_lightning.config.compose import compose_one
from mixer_lightning.config.recipe import Duration, Recipe, load_recipe


def test_a_duration_in_steps():
    assert Duration(steps=7).to_steps(100.0) == 7
    assert Duration(epochs=2.5).to_steps(100.0) == 250
    assert Duration(epochs=20).to_steps(1437 / 64) == 449  # 449.06
    assert Duration(epochs=0.001).to_steps(10.0) == 1  # never none


def test_a_recipe_becomes_yaml_and_comes_back():
    recipe = compose_one("train", ["model=mixer_digits", "duration.steps=7", "logger=wandb"])
    stored = yaml.safe_load(recipe.to_yaml())
    assert stored == recipe.to_dict()
    assert load_recipe(Recipe, stored) == recipe
    del stored["choices"]
    assert check(stored, Recipe) == []
