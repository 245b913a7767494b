"""The trainings behind the study of shuffled inputs: every model under every input, each a run of `mixer train`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mixer_lightning import results
from mixer_lightning.config.compose import compose_one
from mixer_lightning.config.overrides import quoted
from mixer_lightning.config.recipe import Recipe
from mixer_lightning.engine import run
from mixer_lightning.reports.shuffling import ACCURACY, INPUTS
from mixer_lightning.screen import Screen

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
        given = [
            f"model.{line.removeprefix(f'{model}.')}" if line.startswith(f"{model}.") else line
            for line in overrides
            if line.partition(".")[0] == model or line.partition(".")[0] not in models
        ]
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
    """All that are still to be made; 0, or the exit code of the one that failed or was stopped.

    Raises:
        ValueError, OSError: a directory holds a run of another recipe.
    """
    for number, each in enumerate(runs, start=1):
        what = f"{each.model}, {INPUTS[each.input][0]} ({number} of {len(runs)})"
        has_result = (each.run_dir / results.RESULT).exists()
        if has_result and run.finished(each.recipe, each.run_dir) is not None:
            screen.say(f"{what}: finished before")
            continue
        screen.say(what)
        each.run_dir.mkdir(parents=True, exist_ok=True)
        if code := run.train(each.recipe, each.run_dir):
            screen.say(f"{what} ended with exit code {code}; the same command goes on from there")
            return code
    return 0


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
