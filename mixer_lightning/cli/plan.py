"""`mixer train ... plan=true`: what a training would take, without making it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from mixer_lightning.config.arguments import Parser
from mixer_lightning.config.recipe import Recipe
from mixer_lightning.engine.run import leave_no_empty, wait_briefly
from mixer_lightning.screen import Screen, refuse, show_logging

Run = Callable[[Recipe, Path], int]


def choose(command: str, argv: Sequence[str], run: Run) -> tuple[list[str], Run]:
    """The command line without what asks for a plan, and what is to be done with the recipe: `run`, or its plan.

    A wrong key or value ends the program with a message.
    """
    about_plan = [word for word in argv if _key(word) == "plan" or _key(word).startswith("plan.")]
    rest = [word for word in argv if word not in about_plan]
    if not about_plan:
        return rest, run
    parser = Parser(
        command,
        usage="... plan=true [plan.devices=N] [plan.price=X] [plan.images=N plan.classes=K]",
        description="Steps, work, time at the rate measured here, memory, disk and cost of a training; then it exits.",
    )
    add = parser.add_argument
    add("--plan", choices=["true", "false"], default="true")
    add("--plan.devices", dest="devices", type=int, metavar="N", help="like the one here")
    add("--plan.price", dest="price", type=float, metavar="X", help="of a device for an hour")
    add("--plan.images", dest="images", type=int, metavar="N", help="of the training set, if it is not here")
    add("--plan.classes", dest="classes", type=int, metavar="K", help="with plan.images; default: 1000")
    chosen = parser.read([word.removeprefix("--") for word in about_plan])
    parser.check_at_least(1, chosen, "devices", "images", "classes")
    if chosen.price is not None and not 0 <= chosen.price < float("inf"):
        parser.error(f"plan.price must be 0 or more, found {chosen.price:g}")
    if chosen.classes is not None and chosen.images is None:
        parser.error("plan.classes is for data that are not here: give plan.images too")
    if chosen.plan == "false":
        return rest, run
    if {"-m", "--multirun"} & set(rest):
        refuse(["a plan is of one training: leave out -m"])
    return rest, lambda recipe, run_dir: show(recipe, run_dir, chosen)


def _key(word: str) -> str:
    return word.removeprefix("--").partition("=")[0]


def show(recipe: Recipe, run_dir: Path, chosen: argparse.Namespace) -> int:
    """Print the plan; the exit code."""
    screen = Screen()
    wait_briefly()
    try:
        from mixer_lightning.studies.training_plan import plan_of  # torch and Lightning: seconds

        show_logging(screen)  # after the import of Lightning, which has its own ideas
        plan = plan_of(
            recipe,
            images=chosen.images,
            num_classes=chosen.classes,
            devices=chosen.devices,
            price=chosen.price,
            say=screen.say,
        )
    except (ValueError, OSError) as error:
        screen.say(str(error))
        return 2
    finally:
        leave_no_empty(run_dir)
    screen.table("", ("plan", ""), plan.rows())
    return 0
