"""Accuracy against cost: networks of several sizes, at several resolutions and on several parts of a training set.

    mixer study scale models=[mixer_s32,mixer_s16,mixer_b16] fractions=[10,100] data=imagenet1k trainer=gpu --dry-run
    mixer study scale models=[small,large] small.model=mixer_s16 small.num_blocks=2 large.model=mixer_s16 data=cifar10

Every network of `models` is trained at every image size of `sizes` on every part of the training set in `fractions`,
percent, with `seeds` seeds: runs of `mixer train` under `folder`, of which those that have finished are not repeated.
A part holds the images whose keys' hashes come first, so that the smaller lie in the larger (data/splits.py). With
fixed=steps (as in arXiv 2105.01601, figure 2) every run has the steps of the run on the whole set, and sees a smaller
part more often; with fixed=epochs the passes over it are the same, and the steps fewer.

Accuracy is that of the recipe's evaluation, at the end; the paper's is evals=fewshot evals.fewshot.shots=[5].

Keys of `mixer train` are for all runs; one that begins with a network's name is that network's alone. Writes
<out>/scale_<data>.csv with a row for each run, a page and the pictures of model scale and data scale.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from mixer_lightning import results
from mixer_lightning.config.arguments import Parser, listed
from mixer_lightning.config.compose import compose_one
from mixer_lightning.config.overrides import file_name, quoted
from mixer_lightning.config.recipe import Recipe
from mixer_lightning.engine.run import wait_briefly
from mixer_lightning.models.presets import Cost
from mixer_lightning.reports import markdown
from mixer_lightning.screen import Screen, refuse
from mixer_lightning.studies import training_runs
from mixer_lightning.studies.training_runs import Run

OPTIONS = ("models", "sizes", "fractions", "fixed", "seeds", "folder", "out")
OF_STUDY = {
    "model": "models=",
    "image_size": "sizes=",
    "seed": "seeds=",
    "name": "folder=",
}
PAPERS = "mixer_s32,mixer_b32,mixer_s16,mixer_b16"  # those of figure 3 that train in days on one device


class Settings(NamedTuple):
    """What a command line asks for; `overrides` are handed on to the runs, `sizes` empty for the recipe's."""

    chosen: argparse.Namespace
    models: list[str]
    sizes: list[int]
    fractions: list[float]
    overrides: list[str]


class Cell(NamedTuple):
    """One training, and its place among the others."""

    model: str
    conf_model: str
    image_size: int
    percent: float
    seed: int
    run: Run


def settings(argv: Sequence[str]) -> Settings:
    """The command line, as key=value. A wrong argument ends the program with a message."""
    parser = Parser(
        "study scale",
        usage="[models=...] [sizes=...] [fractions=...] [key=value ... of mixer train] [--dry-run]",
        description="Accuracy over the cost of training and over the number of training images.",
    )
    add = parser.add_argument
    add(
        "--models",
        default=PAPERS,
        metavar="NAMES",
        help="of conf/model, or any with <name>.model=<one of conf/model>; default: %(default)s",
    )
    add("--sizes", metavar="LIST", help="of images, sides in pixels; default: the recipe's")
    add(
        "--fractions",
        default="3,10,30,100",
        metavar="LIST",
        help="of the training set, percent; default: the paper's %(default)s",
    )
    add(
        "--fixed",
        choices=["steps", "epochs"],
        default="steps",
        help="what a part of the training set shares with the whole; default: %(default)s, the paper's",
    )
    training_runs.add_options(parser, folder="runs/scale")
    chosen, overrides = training_runs.read_settings(parser, argv, OPTIONS, set_for_runs=OF_STUDY)
    parser.check_at_least(1, chosen, "seeds")
    models = listed(chosen.models)
    if not models:
        parser.error("models is an empty list")
    for name in models:
        if not re.fullmatch(r"\w+", name):
            parser.error(f"models: '{name}' is no name; letters, digits and _ make one")
        training_runs.refuse_unknown_model(parser, _conf_model(name, overrides))
    sizes = training_runs.numbers_of(parser, "sizes", chosen.sizes) if chosen.sizes else []
    fractions = training_runs.numbers_of(parser, "fractions", chosen.fractions, whole=False)
    if fractions[-1] > 100:
        parser.error(f"fractions are percent of the training set, found {fractions[-1]:g}")
    chosen.folder = chosen.folder.expanduser()
    return Settings(chosen, models, [int(size) for size in sizes], fractions, overrides)


def _conf_model(name: str, overrides: Sequence[str]) -> str:
    """The file of conf/model that a network of this name begins with."""
    given = [line.partition("=")[2] for line in overrides if line.partition("=")[0] == f"{name}.model"]
    return given[-1] if given else name


def main(argv: Sequence[str]) -> None:
    """Train what is not trained yet, print, write; or show what that would cost."""
    asked, screen = settings(argv), Screen()
    wait_briefly()
    try:
        cells = plan(asked)
        training_runs.carry_out(
            [cell.run for cell in cells],
            asked.chosen,
            screen,
            write=lambda costs: _write(asked, cells, costs, argv, screen),
        )
    except (ValueError, OSError) as error:
        refuse([str(error)])


def plan(asked: Settings) -> list[Cell]:
    """Every network at every size on every part of the training set, all composed and checked.

    Raises:
        ValueError, OSError: listing what is wrong with one; or the data are not there.
    """
    folder, seeds = asked.chosen.folder, range(asked.chosen.seeds)
    recipes = {model: _recipe(model, asked) for model in asked.models}
    whole = recipes[asked.models[0]]  # data and splits are those of all
    parts = [replace(whole, train_split=_part(whole.train_split, percent)) for percent in asked.fractions]
    num_whole, *num_images = training_runs.num_train_images([whole, *parts])
    cells = []
    for model, recipe in recipes.items():
        in_steps = training_runs.in_steps(recipe, num_whole)
        steps = in_steps.duration.steps
        assert steps is not None
        for size in asked.sizes or [recipe.image_size]:
            for percent, part, images in zip(asked.fractions, parts, num_images, strict=True):
                share = 1.0 if asked.chosen.fixed == "steps" else images / num_whole
                timed = training_runs.with_steps(in_steps, max(1, round(steps * share)))
                for seed in seeds:
                    made = replace(timed, image_size=size, train_split=part.train_split, seed=seed)
                    name = f"{model}-{size}px-{percent:g}pct-seed{seed}"
                    label = f"{model}, {size} px, {percent:g} %, seed {seed}"
                    each = Run(label, made, folder / name, f"{model} {size}")
                    cells.append(Cell(model, _conf_model(model, asked.overrides), size, percent, seed, each))
    return cells


def _recipe(model: str, asked: Settings) -> Recipe:
    lines = training_runs.lines_of(model, asked.models, asked.overrides)
    lines = [line for line in lines if not line.startswith("model.model=")]
    first = f"model={_conf_model(model, asked.overrides)}"
    try:
        return compose_one("train", [first, f"name={quoted(asked.chosen.folder.absolute().name)}", *lines])
    except ValueError as error:
        raise ValueError(f"{model}: {error}") from None


def _part(train_split: str, percent: float) -> str:
    """So many percent of a training split, which is a split of the data set or the beginning of one.

    Raises:
        ValueError: it is neither.
    """
    match = re.fullmatch(r"(\w+)(?:\[(?:0%)?:(\d+(?:\.\d+)?)%\])?", train_split)
    if match is None:
        raise ValueError(
            f"fractions are of the beginning of a split: use train_split=train or train[:90%], not {train_split}"
        )
    if percent == 100:
        return train_split
    share = f"{percent * float(match[2] or 100) / 100:.8f}".rstrip("0").rstrip(".")
    return f"{match[1]}[:{share}%]"


# ---------------------------------------------------------------------------------------------- what is written


def rows_of(cells: Sequence[Cell], costs: Mapping[Path, Cost]) -> list[dict[str, Any]]:
    """A row for every run."""
    return [
        {
            "model": cell.model,
            "conf_model": cell.conf_model,
            "image_size": cell.image_size,
            "percent": cell.percent,
            "seed": cell.seed,
            **training_runs.outcome(cell.run, costs[cell.run.run_dir]),
        }
        for cell in cells
    ]


def _write(
    asked: Settings, cells: Sequence[Cell], costs: Mapping[Path, Cost], argv: Sequence[str], screen: Screen
) -> None:
    """The table on the screen; rows, page and pictures."""
    from mixer_lightning.reports import scale as report  # matplotlib: seconds
    from mixer_lightning.reports.chart_files import draw_png

    first = cells[0].run.recipe
    data = str(first.data.get("name") or first.choices["data"])
    out = asked.chosen.out
    path = out / f"scale_{file_name(data)}.csv"
    rows = training_runs.write_rows(path, rows_of(cells, costs))
    found = report.points(rows)
    screen.table("", report.TABLE, report.cells(found))
    screen.say(report.verdict(found))
    charts = [
        chart
        for make in (report.model_scale, report.data_scale)
        if (chart := make(found, path.stem, data=data)) is not None
    ]
    for chart in charts:
        draw_png(out / f"{chart.name}.png", chart)
    text = report.page(
        found,
        title=f"Scale on {data}",
        introduction=_introduction(asked, cells, rows[0]),
        pictures={f"{chart.name}.png": chart.title for chart in charts},
        networks=_networks(cells),
        provenance=[
            *markdown.provenance(
                machine=results.cpu_name(),
                versions=results.versions(),
                command=["mixer", "study", "scale", *argv],
                commit=results.git_sha(),
            ),
        ],
    )
    markdown.write_page(path.with_suffix(".md"), text)
    screen.say(f"written to {path}, .md and {len(charts)} pictures")


def _introduction(asked: Settings, cells: Sequence[Cell], row: Mapping[str, str]) -> str:
    recipe = cells[-1].run.recipe
    held = {
        "steps": "All parts of the training set have the steps of the whole, and so see as many images",
        "epochs": "All parts of the training set have the epochs of the whole, and so fewer steps",
    }[asked.chosen.fixed]
    return (
        f"{row['metric']}{training_runs.on_images(row)} of networks trained from scratch on parts of the training set, "
        f"the smaller in the larger. {held}; on the whole set {recipe.duration} of {recipe.batch_size} images. Times "
        "hold whatever else ran on the machine; multiply-accumulates of a training are three forward passes for every "
        "image seen."
    )


def _networks(cells: Sequence[Cell]) -> list[str]:
    """What each network is."""
    found: dict[str, str] = {}
    for cell in cells:
        node: dict[str, Any] = cell.run.recipe.model
        numbers = ", ".join(f"{key} {value}" for key, value in node.items() if key != "_target_")
        found[cell.model] = f"{cell.model} ({cell.conf_model}): {numbers}"
    return list(found.values())
