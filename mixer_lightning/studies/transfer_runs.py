"""The runs of a transfer suite for one checkpoint, under one directory, and the table that they fill.

For each task: one run per learning rate on a part of the training set, the best on the rest of it, then final runs on
the whole training set with several seeds. Runs that have finished are not repeated.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from mixer_lightning import results
from mixer_lightning.config.compose import Composition, compose
from mixer_lightning.config.from_checkpoint import refuse_replaced
from mixer_lightning.config.groups import groups_of
from mixer_lightning.config.overrides import key_of
from mixer_lightning.config.recipe import AnyRecipe, EvaluationRecipe, Recipe
from mixer_lightning.engine import run
from mixer_lightning.files import write_text
from mixer_lightning.models.presets import list_models, model_node
from mixer_lightning.reports import transfer as tables
from mixer_lightning.screen import Screen
from mixer_lightning.studies.suites import Fewshot, Suite, Task

FEWSHOT = "fewshot"  # the directory of an evaluation in that of its data set


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


class SuiteRuns:
    """The runs of `suite` under `folder`; `overrides`, the user's, go before those of the tasks."""

    def __init__(self, suite: Suite, *, folder: Path, overrides: Sequence[str], seeds: Sequence[int]) -> None:
        self.suite, self.folder, self.overrides, self.seeds = suite, folder, list(overrides), seeds
        self.any_made = False  # a run was started
        self._composed: dict[tuple[str, ...], Recipe] = {}
        self._evaluations: dict[str, EvaluationRecipe] = {}

    def dev(self, task: Task) -> list[Step]:
        """A run for every learning rate, without the test set."""
        recipe = self._finetune_recipe(task, task.dev)
        return [
            self._step(task, f"dev-lr{rate:g}", recipe, rate, self.seeds[0]) for rate in task.learning_rates
        ]

    def final(self, task: Task, rate: float) -> list[Step]:
        """A run for every seed at the chosen learning rate, on the whole training set."""
        recipe = self._finetune_recipe(task, task.final)
        return [self._step(task, f"final-seed{seed}", recipe, rate, seed) for seed in self.seeds]

    def fewshot(self, data: Fewshot) -> tuple[EvaluationRecipe, Path]:
        """What `mixer evaluate` would do, and where its figures go. What the user sets for training alone is left out.

        Raises:
            ValueError: listing what is wrong with it.
        """
        if data.name not in self._evaluations:
            known = {*groups_of("evaluate"), *(field.name for field in fields(EvaluationRecipe))}
            given = [
                line for line in self._given(data.overrides) if re.split("[.@/]", key_of(line))[0] in known
            ]
            self._evaluations[data.name] = _recipe_of(data.name, compose("evaluate", given))
        return self._evaluations[data.name], self._fewshot_dir(data)

    def check(self) -> str:
        """Compose all recipes before anything runs; the model of the last one, "" if it is none of conf/model.

        Raises:
            ValueError: listing what is wrong with one.
        """
        recipes: list[Recipe | EvaluationRecipe] = [
            step.recipe
            for task in self.suite.tasks
            for step in (*self.dev(task), *self.final(task, task.learning_rates[0]))
        ]
        if any(isinstance(recipe, Recipe) and recipe.fast_dev_run for recipe in recipes):
            raise ValueError("fast_dev_run keeps no figures to choose a learning rate by: use mixer finetune")
        recipes += [self.fewshot(data)[0] for data in self.suite.fewshot]
        name = recipes[-1].choices["model"]
        is_published = name in list_models() and model_node(name) == recipes[-1].model
        return name if is_published else ""

    def check_data(self) -> None:
        """Open the data of everything that is still to be run.

        Raises:
            ValueError: something is not there, or lacks a split; the task is named.
        """
        from mixer_lightning.engine.source import open_data  # torch: seconds

        wanted: list[tuple[str, Recipe | EvaluationRecipe]] = []
        for task in self.suite.tasks:
            for steps in (self.dev(task), self.final(task, task.learning_rates[0])):
                if not all((step.run_dir / results.RESULT).exists() for step in steps):
                    wanted.append((task.name, steps[0].recipe))
        for data in self.suite.fewshot:
            recipe, run_dir = self.fewshot(data)
            if not (run_dir / results.EVALUATION).exists():
                wanted.append((data.name, recipe))
        for name, each in wanted:
            try:
                open_data(each)
            except (ValueError, OSError) as error:
                text = str(error)
                raise ValueError(text if text.startswith(f"{name}: ") else f"{name}: {text}") from error

    def metrics(self) -> dict[str, dict[str, list[float]]]:
        """Of all that has finished under the folder, by this suite or another: task -> metric -> one value per seed.

        What was made of another checkpoint, model or image size is left out.

        Raises:
            ValueError: a record under the folder is damaged.
        """
        columns = self.suite.columns
        wanted = {column.metric for column in columns}
        suites = [*(data for column in columns for data in column.data), *self.suite.names]
        names = dict.fromkeys([*suites, *sorted(path.parent.name for path in self.folder.glob("*/*"))])
        found: dict[str, dict[str, list[float]]] = {}
        for name in names:
            for seed in self.seeds:
                result = results.read_result(self.folder / name / f"final-seed{seed}", whole=True)
                for metric, value in self._metrics_of(result).items():
                    if metric in wanted:
                        found.setdefault(name, {}).setdefault(metric, []).append(value)
            record = results.read_evaluation(self.folder / name / FEWSHOT, whole=True)
            for metric, value in self._metrics_of(record).items():
                found.setdefault(name, {})[metric] = [value]
        return found

    def _metrics_of(self, record: Mapping[str, Any] | None) -> Mapping[str, float]:
        """The metrics of a record, if it is there and of what this suite transfers."""
        if record is None:
            return {}
        mine: Recipe | EvaluationRecipe
        if self.suite.tasks:
            mine = self._finetune_recipe(self.suite.tasks[0], self.suite.tasks[0].final)
        else:
            mine, _ = self.fewshot(self.suite.fewshot[0])
        keys = ("checkpoint", "model", "image_size")
        if any(record["recipe"].get(key) != getattr(mine, key) for key in keys):
            return {}
        return dict(record["metrics"])

    def _step(self, task: Task, name: str, recipe: Recipe, rate: float, seed: int) -> Step:
        recipe = replace(recipe, seed=seed, optimizer={**recipe.optimizer, "lr": rate})
        return Step(task, name, recipe, self._run_dir(task, name))

    def _finetune_recipe(self, task: Task, protocol: tuple[str, ...]) -> Recipe:
        known = (task.name, *protocol)
        if known not in self._composed:
            recipe = _recipe_of(task.name, compose("finetune", [*self._given(task.overrides), *protocol]))
            if recipe.duration.steps is None:
                raise ValueError(f"{task.name}: the suite's durations are in steps, found {recipe.duration}")
            self._composed[known] = recipe
        return self._composed[known]

    def _given(self, overrides: Sequence[str]) -> list[str]:
        """Overrides of a task, except for what the user sets, then the user's."""
        keys = {argument.partition("=")[0] for argument in self.overrides}
        kept = [argument for argument in overrides if argument.partition("=")[0] not in keys]
        return [*kept, f"name={self.folder.name}", *self.overrides]

    def _run_dir(self, task: Task, name: str) -> Path:
        return self.folder / task.name / name

    def _fewshot_dir(self, data: Fewshot) -> Path:
        return self.folder / data.name / FEWSHOT


def _recipe_of(name: str, composed: Composition[AnyRecipe]) -> AnyRecipe:
    """The recipe of a command line.

    Raises:
        ValueError: listing what is wrong with it.
    """
    if composed.messages:
        raise ValueError("\n".join(f"{name}: {message}" for message in composed.messages))
    return composed.jobs[0].recipe


# -------------------------------------------------------------------------------------------- running them


def run_all(runs: SuiteRuns, screen: Screen) -> int:
    """All runs that are still to be made, then few-shot; 0, or the exit code of the one that failed or was stopped.

    Raises:
        ValueError: a directory holds results of another recipe or checkpoint, or of a run that saw the test set too
            early.
    """
    tasks = runs.suite.tasks
    for step in (step for task in tasks for step in runs.dev(task)):
        _is_finished(step)  # refuses what another recipe made before anything is started
    for number, task in enumerate(tasks, start=1):
        label = f"{task.name} ({number} of {len(tasks)})"
        for step in runs.dev(task):
            if code := _run_step(runs, step, label, screen):
                return code
        rate = best_learning_rate(task, runs.dev(task))
        screen.say(f"{label}: lr {rate:g} is the best on the dev split")
        for step in runs.final(task, rate):
            if code := _run_step(runs, step, label, screen):
                return code
    for data in runs.suite.fewshot:
        recipe, run_dir = runs.fewshot(data)
        with remedied_by_folder():
            run.refuse_another_evaluation(recipe, run_dir)
            found = results.read_evaluation(run_dir)
            if found is not None:
                refuse_replaced(recipe.checkpoint, found.get("checkpoint", {}).get("sha256"), run_dir)
        if found is None:
            screen.say(f"{data.name}: few-shot")
            run_dir.mkdir(parents=True, exist_ok=True)
            code = run.evaluate(recipe, run_dir)
            runs.any_made = runs.any_made or code != 2
            if code:
                return code
    return 0


def best_learning_rate(task: Task, steps: Sequence[Step]) -> float:
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
    return -max(found, key=lambda each: (math.isfinite(each[0]), *each))[1]


def _run_step(runs: SuiteRuns, step: Step, label: str, screen: Screen) -> int:
    """Fine-tune, unless that has been done; the exit code."""
    if _is_finished(step):
        return 0
    screen.say(f"{label}: {step.name}")
    step.run_dir.mkdir(parents=True, exist_ok=True)
    code = run.finetune(step.recipe, step.run_dir)
    runs.any_made = runs.any_made or code != 2
    if code:
        screen.say(f"{label}: {step.name} ended with exit code {code}; the same command goes on from there")
    return code


def _is_finished(step: Step) -> bool:
    with remedied_by_folder():
        return step.run_dir.is_dir() and run.finished(step.recipe, step.run_dir) is not None


@contextlib.contextmanager
def remedied_by_folder() -> Iterator[None]:
    """Let the refusal of a directory that holds something else name the key of a study or suite, `folder`."""
    try:
        yield
    except ValueError as error:  # whose remedy is for a run by itself
        raise ValueError(str(error).replace("name=<word>", "folder=<another>")) from None


# -------------------------------------------------------------------------------------------- their table


def write_table(runs: SuiteRuns, *, model: str, record: dict[str, object], screen: Screen) -> None:
    """Show the row of the transfer table beside the published ones of `model`, and write it.

    transfer.json holds `record`, the row and the metrics of every task; transfer.md and transfer.csv the tables.
    """
    metrics, columns = runs.metrics(), runs.suite.columns
    row, published = tables.row(metrics, columns), tables.published(model)
    found = [
        (one["data"], one["metric"], f"{one['mean']:.2f}", f"{one['std']:.2f}")
        for one in tables.by_data_set(metrics)
    ]
    screen.table("", ("data set", "metric", "mean, %", "std"), found)
    if runs.suite.tasks:
        screen.table("", ("", *(column.name for column in columns)), tables.rows(row, published, columns))
    content = {**record, "row": row, "runs": metrics}
    write_text(runs.folder / "transfer.json", json.dumps(content, indent=2) + "\n")
    tables.write(runs.folder, row, published, metrics, columns)
