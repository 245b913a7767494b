"""The trainings behind the study of shuffled inputs: every model under every input, each a run of `mixer train`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mixer_lightning import results
from mixer_lightning.config.compose import compose_one
from mixer_lightning.config.overrides import quoted
from mixer_lightning.config.recipe import Recipe
from mixer_lightning.reports.shuffling import ACCURACY, INPUTS
from mixer_lightning.screen import Screen
from mixer_lightning.studies import training_runs

SHOTS = 5
DEFAULT_PATCH = 16  # of the paper, where no model tells one
EVALS = ("evals=fewshot", f"evals.fewshot.shots=[{SHOTS}]")


class Run(NamedTuple):
    """One training."""

    model: str
    input: str  # one of INPUTS
    recipe: Recipe
    run_dir: Path


def plan(
    models: Sequence[str], *, patch: int | None, seed: int, folder: Path, overrides: Sequence[str]
) -> list[Run]:
    """Every model under every input, all composed and checked.

    `overrides` are those of `mixer train`, for all runs; one that begins with a model's name is that model's alone,
    for its own parameters: mixer_s16.patch_size=4. `patch` None is the side of the first model's patches that has some.

    Raises:
        ValueError: listing what is wrong with one.
    """

    def recipe(model: str, *lines: str) -> Recipe:
        given = training_runs.lines_of(model, models, overrides)
        stated = {line.partition("=")[0] for line in given}
        usual = () if "evals" in stated else EVALS
        try:
            return compose_one(
                "train", [f"model={model}", f"name={quoted(folder.absolute().name)}", *usual, *given, *lines]
            )
        except ValueError as error:
            raise ValueError(f"{model}: {error}") from None

    originals = {model: recipe(model, "augment.shuffle=none") for model in models}
    sides = [each.model["patch_size"] for each in originals.values() if "patch_size" in each.model]
    from mixer_lightning.data.shuffling import Shuffle  # torch: seconds

    patch = patch or next(iter(sides), DEFAULT_PATCH)
    orders = [] if seed == 0 else [f"augment.shuffle_seed={seed}"]  # the default needs no saying
    shuffled = {
        "patches": ("augment.shuffle=patches", f"augment.shuffle_patch={patch}", *orders),
        "pixels": ("augment.shuffle=pixels", *orders),
    }
    runs = []
    for model, original in originals.items():
        Shuffle(kind="patches", patch_size=patch, seed=seed, image_size=original.image_size)
        for kind in INPUTS:
            composed = original if kind == "original" else recipe(model, *shuffled[kind])
            runs.append(Run(model, kind, composed, folder / f"{model}-{kind}"))
    return runs


def run_all(runs: Sequence[Run], screen: Screen) -> int:
    """All that are still to be made: see training_runs.train_all."""
    labelled = [
        training_runs.Run(f"{each.model}, {INPUTS[each.input][0]}", each.recipe, each.run_dir)
        for each in runs
    ]
    return training_runs.train_all(labelled, screen)


def curves(runs: Sequence[Run]) -> tuple[str, list[dict[str, Any]]]:
    """The metric's data set, and a row for every evaluation of every run.

    Raises:
        ValueError: a run has no 5-shot figures.
    """
    rows: list[dict[str, Any]] = []
    data = ""
    for each in runs:
        found = results.read_metrics(each.run_dir)
        suffix = f"_{SHOTS}shot"
        names = {
            name for row in found for name in row if name.startswith("fewshot/") and name.endswith(suffix)
        }
        if not names:
            raise ValueError(
                f"{each.run_dir} has no {SHOTS}-shot accuracy: leave out evals=, or give {EVALS[0]}"
            )
        name = min(names)
        data = name.removeprefix("fewshot/").removesuffix(suffix)
        rows += [
            {
                "model": each.model,
                "input": each.input,
                "step": int(row["step"]),
                "epoch": row["epoch"],
                ACCURACY: row[name],
            }
            for row in found
            if name in row
        ]
    return data, rows
