"""Every downstream number of the Mixer paper from one checkpoint.

    mixer transfer checkpoint=Mixer-B_16.npz model=mixer_b16 suite=avg5
    mixer transfer checkpoint=... suite=vtab seeds=0 --dry-run

For each data set of the suite: one run per learning rate of the paper's grid on a part of the training set, the best
on the rest of it, then final runs on the whole training set with several seeds, which alone see the test set. A run is
`finetune.py` with overrides; those that have finished are not repeated. Writes the row of the paper's transfer table.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

from mixer_lightning import results
from mixer_lightning.cli import evaluate
from mixer_lightning.config.arguments import Parser
from mixer_lightning.config.compose import compose
from mixer_lightning.config.groups import groups
from mixer_lightning.config.recipe import EvaluationRecipe, Recipe
from mixer_lightning.engine import run
from mixer_lightning.files import write_text
from mixer_lightning.reports import transfer as tables
from mixer_lightning.screen import Screen, did_you_mean


class Task(NamedTuple):
    """A data set and how it is transferred to.

    The learning rates are the Mixer paper's (arXiv 2105.01601, App. C); the dev split is ViT's (arXiv 2010.11929,
    App. B.1.1), taken from the training set by hash. Steps and warm-up are those of conf/transfer.
    """

    data: str
    learning_rates: tuple[float, ...]
    dev: tuple[str, ...]
    final: tuple[str, ...]


def _five(data: str, held_out: int, *, final: tuple[str, ...], train: str = "train") -> Task:
    parts = "+".join(f"{part}[:{100 - held_out}%]" for part in train.split("+"))
    rest = "+".join(f"{part}[{100 - held_out}%:]" for part in train.split("+"))
    dev = (f"train_split='{parts}'", f"val_split='{rest}'", "test_split=none")
    return Task(data, (0.003, 0.01, 0.03, 0.06), dev, (f"train_split={train}", "val_split=none", *final))


AVG5 = (
    _five("imagenet1k", 1, final=("test_split=val",)),
    _five("cifar10", 2, final=("test_split=test",)),
    _five("cifar100", 2, final=("test_split=test",)),
    _five("pets", 10, final=("test_split=test",)),
    _five("flowers", 10, final=("test_split=test",), train="train+val"),
)
VTAB = tuple(
    Task(
        f"vtab_{name}",
        (0.003, 0.01, 0.03),
        ("data.split=train800", "test_split=none"),
        ("data.split=trainval1000", "val_split=none"),
    )
    for tasks in tables.VTAB_GROUPS.values()
    for name in tasks
)
SUITES = {"avg5": AVG5, "vtab": VTAB, "fewshot": (), "all": (*AVG5, *VTAB)}
#: Of big_vision's common_fewshot.py, the data sets that are read here as a whole; the Mixer paper plots ImageNet's.
FEWSHOT = ("imagenet1k", "cifar100", "pets")


class Step(NamedTuple):
    """One fine-tuning run."""

    task: Task
    name: str  # of its directory: dev-lr0.003, final-seed0
    recipe: Recipe
    run_dir: Path

    @property
    def images(self) -> int:
        """Images that its training steps take."""
        assert self.recipe.duration.steps is not None
        return self.recipe.duration.steps * self.recipe.batch_size


class Suite:
    """The runs of a suite for one checkpoint, under one directory."""

    def __init__(
        self, tasks: Sequence[Task], *, folder: Path, overrides: Sequence[str], seeds: Sequence[int]
    ) -> None:
        self.tasks, self.folder, self.overrides, self.seeds = tasks, folder, list(overrides), seeds
        self._composed: dict[tuple[str, ...], Recipe] = {}

    def dev(self, task: Task) -> list[Step]:
        """A run for every learning rate, without the test set."""
        recipe = self._recipe(task, task.dev)
        return [
            self._step(task, f"dev-lr{rate:g}", recipe, rate, self.seeds[0]) for rate in task.learning_rates
        ]

    def final(self, task: Task, rate: float) -> list[Step]:
        """A run for every seed at the chosen learning rate, on the whole training set."""
        evals = ("evals=[accuracy,real]",) if task.data == "imagenet1k" else ()
        recipe = self._recipe(task, (*task.final, *evals))
        return [self._step(task, f"final-seed{seed}", recipe, rate, seed) for seed in self.seeds]

    def _step(self, task: Task, name: str, recipe: Recipe, rate: float, seed: int) -> Step:
        recipe = replace(recipe, seed=seed, optimizer={**recipe.optimizer, "lr": rate})
        return Step(task, name, recipe, self.folder / task.data / name)

    def _recipe(self, task: Task, protocol: tuple[str, ...]) -> Recipe:
        """What finetune.py would run; what the user says has the last word, except on the protocol itself.

        Raises:
            ValueError: listing what is wrong with it.
        """
        known = (task.data, *protocol)
        if known not in self._composed:
            given = [f"data={task.data}", f"name={self.folder.name}", *self.overrides, *protocol]
            composed = compose("finetune", given)
            if composed.messages:
                raise ValueError("\n".join(f"{task.data}: {message}" for message in composed.messages))
            recipe = composed.jobs[0].recipe
            if recipe.duration.steps is None:
                raise ValueError(f"{task.data}: the suite's durations are in steps, found {recipe.duration}")
            self._composed[known] = recipe
        return self._composed[known]


def chosen_rate(task: Task, steps: Sequence[Step]) -> float:
    """The learning rate with the best final top-1 on the dev split; the smaller of equals.

    Raises:
        ValueError: a run has no result, or no figure on the dev split, or has seen a test set.
    """
    found = []
    for rate, step in zip(task.learning_rates, steps, strict=True):
        result = results.read_result(step.run_dir)
        if result is None:
            raise ValueError(f"{step.run_dir} has no result yet")
        if any(name.startswith("test/") for name in result["metrics"]):
            raise ValueError(f"{step.run_dir} was evaluated on the test set, which chooses nothing")
        if "val/top1" not in result["metrics"]:
            raise ValueError(f"{step.run_dir} has no val/top1 to choose a learning rate by")
        found.append((result["metrics"]["val/top1"], -rate))
    return -max(found)[1]


def carry_out(suite: Suite, screen: Screen) -> int:
    """All runs that are still to be made; 0, or the exit code of the one that failed or was stopped."""
    for number, task in enumerate(suite.tasks, start=1):
        here = f"{task.data} ({number} of {len(suite.tasks)})"
        for step in suite.dev(task):
            if code := _make(step, here, screen):
                return code
        rate = chosen_rate(task, suite.dev(task))
        screen.say(f"{here}: lr {rate:g} is the best on the dev split")
        for step in suite.final(task, rate):
            if code := _make(step, here, screen):
                return code
    return 0


def judge_features(names: Sequence[str], *, folder: Path, overrides: Sequence[str], screen: Screen) -> int:
    """Few-shot linear classifiers on the frozen features, one data set after the other; the exit code.

    Raises:
        ValueError: a directory holds figures of another recipe.
    """
    for name in names:
        recipe, run_dir = fewshot_recipe(name, folder=folder, overrides=overrides)
        evaluate.refuse_another(recipe, run_dir)
        if evaluate.read(run_dir) is None:
            screen.say(f"{name}: few-shot")
            run_dir.mkdir(parents=True, exist_ok=True)
            if code := evaluate.evaluate(recipe, run_dir):
                return code
    return 0


def fewshot_recipe(name: str, *, folder: Path, overrides: Sequence[str]) -> tuple[EvaluationRecipe, Path]:
    """What evaluate.py would do, and where its figures go.

    Raises:
        ValueError: listing what is wrong with it.
    """
    given = [f"data={name}", f"name={folder.name}", "evals=fewshot", *overrides]
    composed = compose("evaluate", given)
    if composed.messages:
        raise ValueError("\n".join(f"{name}: {message}" for message in composed.messages))
    return composed.jobs[0].recipe, folder / name / "fewshot"


def _make(step: Step, here: str, screen: Screen) -> int:
    finished = (step.run_dir / results.RESULT).exists()
    if not finished:
        screen.say(f"{here}: {step.name}")
    try:
        if finished and run.finished(step.recipe, step.run_dir) is not None:
            return 0
    except ValueError as error:  # a run of another recipe
        screen.say(str(error))
        return 2
    step.run_dir.mkdir(parents=True, exist_ok=True)
    code = run.finetune(step.recipe, step.run_dir)
    if code:
        screen.say(f"{here}: {step.name} ended with exit code {code}; the same command goes on from there")
    return code


def collected(suite: Suite) -> dict[str, dict[str, list[float]]]:
    """Metrics of the finished final runs: data set -> metric -> one value per seed."""
    found: dict[str, dict[str, list[float]]] = {}
    for task in suite.tasks:
        for seed in suite.seeds:
            result = results.read_result(suite.folder / task.data / f"final-seed{seed}")
            for name, value in (result or {"metrics": {}})["metrics"].items():
                if name in ("test/top1", "real/top1"):
                    found.setdefault(task.data, {}).setdefault(name, []).append(value)
    for name in FEWSHOT:
        record = evaluate.read(suite.folder / name / "fewshot")
        for metric, value in (record or {"metrics": {}})["metrics"].items():
            found.setdefault(name, {})[metric] = [value]
    return found


# --------------------------------------------------------------------------------------------------- plan


def plan(suite: Suite, screen: Screen, *, rate: float | None) -> None:
    """What would be run, and how long it takes at `rate` images per second; measured here if None."""
    steps = [
        step
        for task in suite.tasks
        for step in (*suite.dev(task), *suite.final(task, task.learning_rates[0]))
    ]
    left = [step for step in steps if not (step.run_dir / results.RESULT).exists()]
    if not steps:
        return
    if rate is None:
        rate = measured_rate(steps, screen)
    rows = []
    for task in suite.tasks:
        mine = [step for step in left if step.task is task]
        images = sum(step.images for step in mine)
        length = str(mine[0].recipe.duration) if mine else "finished"
        lrs = ", ".join(f"{lr:g}" for lr in task.learning_rates)
        rows.append((task.data, f"{len(mine)}", length, lrs, f"{images:,}", _hours(images / rate)))
    total = sum(step.images for step in left)
    rows.append(("total", f"{len(left)}", "", "", f"{total:,}", _hours(total / rate)))
    screen.table("", ("data", "runs", "each", "learning rates", "images", "device time"), rows)
    screen.say(
        f"at {rate:,.1f} images/s, evaluation not counted; {len(steps) - len(left)} of {len(steps)} runs finished"
    )


def measured_rate(steps: Sequence[Step], screen: Screen) -> float:
    """Images per second of the runs that have finished, else of a few training steps made here and now."""
    finished = [results.read_result(step.run_dir) for step in steps]
    rates = [float(result["images_per_second"]) for result in finished if result]
    if rates:
        return statistics.median(rates)
    from mixer_lightning.engine.training import training_rate

    screen.say("measuring a few training steps")
    return training_rate(steps[0].recipe)


def _hours(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


# ------------------------------------------------------------------------------------------------ program


def settings(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The command line: ours, and what is handed on to finetune.py. A wrong word ends the program with a sentence."""
    parser = Parser(
        "transfer",
        usage="checkpoint=<file> [suite=avg5] [key=value ...] [--dry-run]",
        description="Fine-tunes a checkpoint on every data set of a suite and writes the row of the transfer table. "
        "Any key of finetune.py may be added: trainer=gpu, device_batch=128, image_size=448.",
    )
    add = parser.add_argument
    add("--suite", choices=sorted(SUITES), default="avg5", help="default: %(default)s")
    add("--tasks", metavar="NAMES", help="only these data sets of the suite, separated by commas")
    add(
        "--seeds",
        default="0,1,2",
        metavar="LIST",
        help="of the final runs; default: %(default)s, the paper's three",
    )
    add("--rate", type=float, metavar="N", help="images/s for the plan; default: measured")
    add("--folder", type=Path, metavar="FOLDER", help="default: runs/transfer/<checkpoint's name>")
    add("--dry-run", action="store_true", help="print the plan and stop")
    ours = {"suite", "tasks", "seeds", "rate", "folder"}
    mine = [f"--{word}" if word.partition("=")[0] in ours else word for word in argv]
    chosen, rest = parser.parse_known_args(mine)
    if os.environ.get("WORLD_SIZE", "1") != "1":  # of torchrun, whose process groups cannot be made anew
        parser.error(
            "a suite's runs are made in one process, on one device (trainer=gpu): start without torchrun"
        )
    wrong = [word for word in rest if "=" not in word or word.startswith("-")]
    if wrong:
        parser.error(f"'{wrong[0]}' is not of the form key=value")
    given = dict(word.partition("=")[::2] for word in rest)
    known_keys = [*ours, *groups(), *(each.name for each in fields(Recipe)), "hydra"]
    for root in (key.lstrip("+~").partition(".")[0].partition("/")[0] for key in given):
        if root not in known_keys:
            parser.error(f"unknown key '{root}'{did_you_mean(root, known_keys)}")
    for key in ("data", "seed", "optimizer.lr", "train_split", "val_split", "test_split", "name", "evals"):
        if key in given:
            parser.error(f"'{key}' is the suite's to say: choose tasks= and seeds=, or use finetune.py")
    if "checkpoint" not in given:
        parser.error("'checkpoint' is missing: a file, a run directory, or timm:<name>")
    try:
        chosen.seeds = [int(seed) for seed in chosen.seeds.strip("[]").split(",")]
    except ValueError:
        parser.error(f"seeds={chosen.seeds}: expected whole numbers separated by commas")
    if len(set(chosen.seeds)) < len(chosen.seeds):
        parser.error(f"seeds={','.join(map(str, chosen.seeds))}: a seed stands there twice")
    if chosen.rate is not None and not chosen.rate > 0:
        parser.error(f"rate must be above 0, found {chosen.rate:g}")
    tasks = list(SUITES[chosen.suite])
    chosen.fewshot = FEWSHOT if chosen.suite in ("fewshot", "all") else ()
    if chosen.tasks:
        names = chosen.tasks.strip("[]").split(",")
        known = dict.fromkeys([*(task.data for task in tasks), *chosen.fewshot])
        unknown = [name for name in names if name not in known]
        if unknown:
            parser.error(f"suite {chosen.suite} has no '{unknown[0]}': {', '.join(known)}")
        tasks = [task for task in tasks if task.data in names]
        chosen.fewshot = tuple(name for name in chosen.fewshot if name in names)
    chosen.tasks = tasks
    name = Path(given["checkpoint"].strip("'\"").removeprefix("timm:"))
    label = name.parent.name if name.name in (results.BEST, results.LAST) else name.name
    chosen.folder = (chosen.folder or Path("runs/transfer") / label).expanduser()
    return chosen, rest


def main(argv: Sequence[str]) -> int:
    """Run the suite, or show its plan; the exit code."""
    chosen, rest = settings(argv)
    screen = Screen()
    suite = Suite(chosen.tasks, folder=chosen.folder, overrides=rest, seeds=chosen.seeds)
    try:
        for task in suite.tasks:  # all recipes are composed before any runs
            model = suite.dev(task)[0].recipe.choices["model"]
            suite.final(task, task.learning_rates[0])
        for name in chosen.fewshot:
            model = fewshot_recipe(name, folder=suite.folder, overrides=rest)[0].choices["model"]
        if chosen.dry_run:
            plan(suite, screen, rate=chosen.rate)
            if chosen.fewshot:
                screen.say(
                    f"and the features of {', '.join(chosen.fewshot)} for few-shot classifiers, without training"
                )
            return 0
        began = time.perf_counter()
        code = carry_out(suite, screen)
        code = code or judge_features(chosen.fewshot, folder=suite.folder, overrides=rest, screen=screen)
    except (ValueError, OSError) as error:
        screen.say(str(error))
        return 2
    row = tables.row(collected(suite))
    published = tables.published(model)
    found = [
        (one["data"], one["metric"], f"{one['mean']:.2f}", f"{one['std']:.2f}")
        for one in tables.by_data_set(collected(suite))
    ]
    screen.table("", ("data set", "metric", "mean, %", "std"), found)
    if suite.tasks:
        screen.table("", ("", *tables.COLUMNS), tables.shown(row, published))
    record = {
        "checkpoint": rest,
        "suite": chosen.suite,
        "seeds": chosen.seeds,
        "row": row,
        "runs": collected(suite),
    }
    write_text(suite.folder / "transfer.json", json.dumps(record, indent=2) + "\n")
    tables.write(suite.folder, row, published, collected(suite))
    screen.say(
        f"{time.perf_counter() - began:,.0f} s; written to {suite.folder / 'transfer.md'}, .csv and .json"
    )
    return code
