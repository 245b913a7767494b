"""What a transfer suite would still run, and how long that takes on this machine."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from mixer_lightning import results
from mixer_lightning.config.recipe import Recipe
from mixer_lightning.engine.run import wait_briefly
from mixer_lightning.screen import Screen, show_logging
from mixer_lightning.studies.transfer_runs import SuiteRuns


def show_plan(runs: SuiteRuns, screen: Screen, *, images_per_second: float | None) -> None:
    """Print runs, steps, images and time of every task, at a rate that is measured here where it is None."""
    if runs.suite.tasks:
        _show_tasks(runs, screen, images_per_second)
    if runs.suite.fewshot:
        names = ", ".join(data.name for data in runs.suite.fewshot)
        screen.say(f"and the features of {names} for few-shot classifiers, without training")


def _show_tasks(runs: SuiteRuns, screen: Screen, images_per_second: float | None) -> None:
    steps = [
        step
        for task in runs.suite.tasks
        for step in (*runs.dev(task), *runs.final(task, task.learning_rates[0]))
    ]
    left = [step for step in steps if not (step.run_dir / results.RESULT).exists()]
    rate = measured_rate(steps, screen) if images_per_second is None else images_per_second
    rows = []
    for task in runs.suite.tasks:
        mine = [step for step in left if step.task is task]
        images = sum(step.images for step in mine)
        length = str(mine[0].recipe.duration) if mine else "finished"
        lrs = ", ".join(f"{lr:g}" for lr in task.learning_rates)
        rows.append((task.name, f"{len(mine)}", length, lrs, f"{images:,}", format_time(images / rate)))
    total = sum(step.images for step in left)
    rows.append(("total", f"{len(left)}", "", "", f"{total:,}", format_time(total / rate)))
    screen.table("", ("data", "runs", "each", "learning rates", "images", "device time"), rows)
    screen.say(
        f"at {rate:,.1f} images/s, evaluation not counted: device_days {total / rate / 86400:.3g}; "
        f"{len(steps) - len(left)} of {len(steps)} runs finished"
    )


class Planned(Protocol):
    """A run that may have been made already."""

    @property
    def recipe(self) -> Recipe:
        """What is trained."""

    @property
    def run_dir(self) -> Path:
        """Where."""


def measured_rate(
    steps: Sequence[Planned], screen: Screen, *, seconds: float = 5.0, what: str = "a few training steps"
) -> float:
    """Images per second of the runs that have finished, else of some seconds of the first's steps, made here and now.

    `what` is measured, as the screen says it.
    """
    finished = [results.read_result(step.run_dir) for step in steps]
    rates = [float(result["images_per_second"]) for result in finished if result]
    if rates:
        return statistics.median(rates)
    wait_briefly()
    from mixer_lightning.engine.throughput import training_rate  # torch and Lightning: seconds

    show_logging(screen)  # after the import of Lightning, which has its own ideas
    screen.say(f"measuring {what}")
    return training_rate(steps[0].recipe, seconds=seconds)


def format_time(seconds: float) -> str:
    """'12 s', '10 min', '2.0 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"
