"""The trainings behind a study: each a run of `mixer train`, made once and gone on with where it was stopped."""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mixer_lightning import launcher, results
from mixer_lightning.config.arguments import Parser, listed, output_folder, without_dashes, without_value
from mixer_lightning.config.groups import groups, groups_of
from mixer_lightning.config.overrides import key_of
from mixer_lightning.config.recipe import Duration, Recipe
from mixer_lightning.engine import run
from mixer_lightning.models.presets import PASSES, Cost, list_models
from mixer_lightning.screen import Screen, did_you_mean
from mixer_lightning.studies.transfer_plan import format_time, measured_rate
from mixer_lightning.studies.transfer_runs import remedied_by_folder


class Run(NamedTuple):
    """One training. `label` says what it is; runs of one `pace` train as many images a second."""

    label: str
    recipe: Recipe
    run_dir: Path
    pace: str = ""


# --------------------------------------------------------------------------------------------- command line


def read_settings(
    parser: Parser,
    argv: Sequence[str],
    options: Sequence[str],
    *,
    set_for_runs: Mapping[str, str],
    program: Literal["train", "finetune"] = "train",
    whose: Literal["study", "suite"] = "study",
) -> tuple[argparse.Namespace, list[str]]:
    """The own `options` of a study, and the overrides for its runs; a wrong argument ends the program with a message.

    Args:
        parser: knows the options.
        argv: the command line, key=value.
        options: names of the study's own.
        set_for_runs: keys that the study sets for its runs -> what to use instead.
        program: of the runs.
        whose: the runs are, in messages.
    """
    if messages := [message for each in argv if (message := without_value(each))]:
        parser.error(messages[0])
    known = [*groups_of(program), *(field.name for field in fields(Recipe))]
    argv = without_dashes(argv, known)
    mine = [f"--{argument}" if argument.partition("=")[0] in options else argument for argument in argv]
    chosen, overrides = parser.parse_known_args(mine)
    for each in overrides:
        if each.startswith("-") or "=" not in each:
            parser.error(f"'{each}' is not of the form key=value")
        key = key_of(each)
        if key.startswith(("hydra.", "hydra/")):
            parser.error(f"hydra.* is the {whose}'s own: give its runs a place with folder=<folder>")
        if "." not in key and key not in known and key not in set_for_runs:
            parser.error(f"unknown key '{key}'{did_you_mean(key, [*options, *known])}")
        if key in set_for_runs:
            parser.error(f"'{key}' is set by the {whose}: use {set_for_runs[key]}")
    if (launcher.launched() or launcher.ALONE).world_size > 1:  # process groups cannot be made anew
        parser.error("the runs are made in one process, on one device: start without torchrun or srun")
    return chosen, overrides


def numbers_of(parser: Parser, name: str, text: str, *, whole: bool = True) -> list[float]:
    """Numbers above 0 in a list, from the smallest on; anything else ends the program with a message."""
    found = set()
    for word in listed(text):
        try:
            number = float(word)
        except ValueError:
            number = 0.0
        if not 0 < number < float("inf") or (whole and number != int(number)):
            parser.error(f"{name}: expected {'whole ' * whole}numbers above 0, found '{word}'")
        found.add(number)
    if not found:
        parser.error(f"{name} is an empty list")
    return sorted(found)


def refuse_unknown_model(parser: Parser, name: str) -> None:
    """End the program unless `name` is one of conf/model."""
    if name not in groups()["model"]:
        parser.error(f"there is no model '{name}'{did_you_mean(name, list_models())}")


def lines_of(name: str, names: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Overrides of one of several models: those that begin with its name and a point are its own parameters."""
    return [
        f"model.{line.removeprefix(f'{name}.')}" if line.startswith(f"{name}.") else line
        for line in overrides
        if line.partition(".")[0] == name or line.partition(".")[0] not in names
    ]


# ------------------------------------------------------------------------------------------------- lengths


def num_train_images(recipes: Sequence[Recipe]) -> list[int]:
    """How many images the training split of each recipe has; a data set that several share is opened once.

    Raises:
        ValueError, OSError: it is not there, or has no such split.
    """
    from mixer_lightning.data import splits
    from mixer_lightning.targets import build

    opened: dict[str, Any] = {}
    counts = []
    for recipe in recipes:
        key = json.dumps(recipe.data, sort_keys=True)
        if key not in opened:
            opened[key] = build(recipe.data)
        chosen = splits.choose(
            opened[key], train=recipe.train_split, val=recipe.val_split, test=recipe.test_split
        )
        counts.append(len(chosen.splits["train"]))
    return counts


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    """A recipe whose durations are in steps, with so many: in its course evaluated and saved as often as before."""
    before = recipe.duration.steps
    assert before is not None

    def share(duration: Duration) -> Duration:
        assert duration.steps is not None
        return Duration(steps=max(1, round(duration.steps * steps / before)))

    return replace(
        recipe,
        duration=Duration(steps=steps),
        eval_every=share(recipe.eval_every),
        checkpoint_every=share(recipe.checkpoint_every),
    )


def in_steps(recipe: Recipe, num_images: int) -> Recipe:
    """The same recipe with its durations in steps, for a training set of so many images."""
    per_epoch = recipe.optimizer_steps_per_epoch(num_images)

    def steps(duration: Duration) -> Duration:
        return Duration(steps=duration.to_steps(per_epoch))

    return replace(
        recipe,
        duration=steps(recipe.duration),
        eval_every=steps(recipe.eval_every),
        checkpoint_every=steps(recipe.checkpoint_every),
    )


def num_steps(each: Run) -> int:
    """Optimiser steps of a run whose durations are in steps."""
    assert each.recipe.duration.steps is not None
    return each.recipe.duration.steps


# ---------------------------------------------------------------------------------------------- running them


def is_finished(each: Run) -> bool:
    """Whether a run has ended with a result of its recipe.

    Raises:
        ValueError, OSError: its directory holds a run of another recipe, or on other data.
    """
    with remedied_by_folder():
        return each.run_dir.is_dir() and run.finished(each.recipe, each.run_dir) is not None


def train_all(runs: Sequence[Run], screen: Screen) -> int:
    """Make all that are still to be made; 0, or the exit code of the one that failed or was stopped.

    Raises:
        ValueError, OSError: before any is made: a directory holds a run of another recipe, or one evaluates nothing.
    """
    for each in runs:
        if not each.recipe.evals:
            raise ValueError(f"{each.label}: 'evals' is empty, and there would be no accuracy: leave it out")
        if each.recipe.fast_dev_run:
            raise ValueError("fast_dev_run keeps no figures to compare: use mixer train, or leave it out")
    done = [is_finished(each) for each in runs]
    for number, (each, was_done) in enumerate(zip(runs, done, strict=True), start=1):
        what = f"{each.label} ({number} of {len(runs)})"
        if was_done:
            screen.say(f"{what}: finished before")
            continue
        screen.say(what)
        each.run_dir.mkdir(parents=True, exist_ok=True)
        if code := run.train(each.recipe, each.run_dir):
            screen.say(f"{what} ended with exit code {code}; the same command goes on from there")
            return code
    return 0


def outcome(each: Run, cost: Cost) -> dict[str, Any]:
    """The end of a row of results: what came out of a finished run, and what it cost.

    `metric` is the one that runs are compared by, `accuracy` its last value, a fraction; `eval_images` "" where it is
    not of all images of a split.
    """
    result = results.read_result(each.run_dir, whole=True)
    assert result is not None
    metric = results.main_metric(result["metrics"])
    if metric is None or results.is_better_lower(metric):
        raise ValueError(f"{each.run_dir} has no accuracy: leave out evals=, or give one that measures it")
    steps = int(result["steps"])
    return {
        "metric": metric,
        "accuracy": float(result["metrics"][metric]),
        "steps": steps,
        "images_seen": steps * each.recipe.batch_size,
        "train_images": int(result["images"]["train"]),
        "eval_images": result["images"].get(metric.partition("/")[0], ""),
        "parameters": cost.parameters,
        "gmacs": cost.macs / 1e9,
        "images_per_second": float(result["images_per_second"]),
        "device_seconds": 86400 * float(result["device_days"]),
    }


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Write a CSV file; its rows, which pages and figures are made from."""
    results.write_rows(path, rows, digits=4)
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def on_images(row: Mapping[str, str]) -> str:
    """On how many images the accuracy of a row was measured, in words; "" where it does not say."""
    return f" on {int(row['eval_images']):,} images" if row["eval_images"] else ""


def costs_of(runs: Sequence[Run], *, num_classes: int) -> dict[Path, Cost]:
    """Parameters and multiply-accumulates of the network of each run, by its directory.

    Raises:
        ValueError: there is no such network; the run is named.
    """
    from mixer_lightning.models.presets import count

    known: dict[str, Cost] = {}
    found = {}
    for each in runs:
        key = json.dumps([each.recipe.model, each.recipe.image_size], sort_keys=True)
        if key not in known:
            try:
                known[key] = count(
                    each.recipe.model, num_classes=num_classes, image_size=each.recipe.image_size
                )
            except ValueError as error:
                raise ValueError(f"{each.label}: {error}") from None
        found[each.run_dir] = known[key]
    return found


def num_classes_of(recipe: Recipe) -> int:
    """Classes of a recipe's data.

    Raises:
        ValueError, OSError: it is not there, or has no such splits.
    """
    from mixer_lightning.engine.source import open_data

    return len(open_data(recipe).classes)


# ---------------------------------------------------------------------------------------- from plan to results


def add_options(parser: Parser, *, folder: str) -> None:
    """What every study of trainings takes: seeds, folder, out, --dry-run."""
    add = parser.add_argument
    add("--seeds", type=int, default=1, metavar="N", help="runs of each kind; default: %(default)s")
    add("--folder", type=Path, default=Path(folder), metavar="FOLDER", help="default: %(default)s")
    add("--out", type=Path, default=Path("results"), metavar="FOLDER", help="default: %(default)s")
    add("--dry-run", action="store_true", help="print what would be run and what it costs")


def carry_out(
    runs: Sequence[Run],
    chosen: argparse.Namespace,
    screen: Screen,
    write: Callable[[Mapping[Path, Cost]], None],
) -> None:
    """Make all runs and `write` what came out, given their costs; or, on a dry run, show what that would take.

    A run that fails or is stopped ends the program with its exit code.

    Raises:
        ValueError, OSError: something is wrong with a run, before any is made, or with the folder of results.
    """
    costs = costs_of(runs, num_classes=num_classes_of(runs[0].recipe))
    if chosen.dry_run:
        show_plan(runs, costs, screen)
        return
    chosen.out = output_folder("out", chosen.out)
    if code := train_all(runs, screen):
        raise SystemExit(code)
    write(costs)


def show_plan(runs: Sequence[Run], costs: Mapping[Path, Cost], screen: Screen) -> None:
    """Print what would be run: steps, images, arithmetic, and the time that this takes here.

    The rate of a pace is that of its runs that have finished, else of two seconds of training steps made now.
    """
    rows, total, left = [], 0.0, 0
    rates: dict[str, float] = {}
    done = {each.run_dir: is_finished(each) for each in runs}
    for each in runs:
        steps = num_steps(each)
        images = steps * each.recipe.batch_size
        arithmetic = PASSES["training"] * costs[each.run_dir].macs * images / 1e12
        if done[each.run_dir]:
            rows.append((each.label, "finished", f"{images:,}", f"{arithmetic:,.4g}", ""))
            continue
        if each.pace not in rates:
            alike = [other for other in runs if other.pace == each.pace and done[other.run_dir]]
            rates[each.pace] = measured_rate(
                [*alike, each], screen, seconds=2.0, what=f"training steps: {each.label}"
            )
        seconds = images / rates[each.pace]
        total, left = total + seconds, left + 1
        rows.append((each.label, f"{steps:,}", f"{images:,}", f"{arithmetic:,.4g}", format_time(seconds)))
    rows.append(("total", f"{left} runs", "", "", format_time(total)))
    screen.table("", ("run", "steps", "images", "10^12 multiply-accumulates", "device time"), rows)
    screen.say(
        f"evaluation not counted; device_days {total / 86400:.3g}; {len(runs) - left} of {len(runs)} runs finished"
    )
