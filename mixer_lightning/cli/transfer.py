"""Every downstream number of the Mixer paper from one checkpoint.

    mixer transfer checkpoint=Mixer-B_16.npz model=mixer_b16 suite=avg5
    mixer transfer checkpoint=... suite=vtab seeds=0 --dry-run

For each task of the suite, a file of conf/suite: one run per learning rate on a part of the training set, the best on
the rest of it, then final runs on the whole training set with several seeds, which alone see the test set. A run is
`mixer finetune` with overrides; one that has finished is not repeated. Writes the row of the paper's transfer table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from mixer_lightning import launcher, results
from mixer_lightning.checkpoints.families import TIMM_SCHEME
from mixer_lightning.config.arguments import Parser, without_dashes, without_value
from mixer_lightning.config.from_checkpoint import check_there
from mixer_lightning.config.groups import groups
from mixer_lightning.config.overrides import values_by_key
from mixer_lightning.config.recipe import Recipe
from mixer_lightning.results import BEST, LAST
from mixer_lightning.screen import Screen, did_you_mean
from mixer_lightning.studies.suites import Suite, available, read_suite
from mixer_lightning.studies.transfer_plan import show_plan
from mixer_lightning.studies.transfer_runs import SuiteRuns, run_all, write_table

OPTIONS = ("suite", "tasks", "seeds", "rate", "folder")
#: Keys of `mixer finetune` that a suite sets.
OF_SUITE = (
    "data",
    "data.task",
    "data.split",
    "seed",
    "optimizer.lr",
    "train_split",
    "val_split",
    "test_split",
    "name",
    "evals",
)


@dataclass(frozen=True)
class Settings:
    """What a command line asks for; `overrides` are handed on to every run."""

    checkpoint: str
    suite_name: str
    suite: Suite
    seeds: list[int]
    rate: float | None
    folder: Path
    dry_run: bool
    overrides: list[str]


def main(argv: Sequence[str]) -> int:
    """Run the suite, or show its plan; the exit code."""
    asked = settings(argv)
    screen = Screen()
    runs = SuiteRuns(asked.suite, folder=asked.folder, overrides=asked.overrides, seeds=asked.seeds)
    began = time.perf_counter()
    try:
        check_there(asked.checkpoint)
        model = runs.check()
        if asked.dry_run:
            show_plan(runs, screen, images_per_second=asked.rate)
            return 0
        runs.check_data()
        code = run_all(runs, screen)
        if not code:
            record: dict[str, object] = {
                "checkpoint": [results.without_secrets(word) for word in asked.overrides],
                "suite": asked.suite_name,
                "seeds": asked.seeds,
            }
            write_table(runs, model=model, record=record, screen=screen)
    except (ValueError, OSError) as error:
        screen.say(str(error))
        code = 2
    if code:
        return 1 if code == 2 and runs.any_made else code  # 2 promises that nothing was started
    seconds = time.perf_counter() - began
    screen.say(f"{seconds:,.0f} s; written to {runs.folder / 'transfer.md'}, .csv and .json")
    return 0


def settings(argv: Sequence[str]) -> Settings:
    """What a command line asks for. A wrong argument ends the program with a sentence."""
    parser = _parser()
    if messages := [message for each in argv if (message := without_value(each))]:
        parser.error(messages[0])
    argv = without_dashes(argv, _known_keys())
    mine = [f"--{argument}" if argument.partition("=")[0] in OPTIONS else argument for argument in argv]
    chosen, overrides = parser.parse_known_args(mine)
    if (launcher.launched() or launcher.ALONE).world_size > 1:  # process groups cannot be made anew
        parser.error(
            "a suite's runs are made in one process, on one device (trainer=gpu): start without torchrun or srun"
        )
    _refuse_wrong(parser, overrides)
    if chosen.rate is not None and not chosen.rate > 0:
        parser.error(f"rate must be above 0, found {chosen.rate:g}")
    checkpoint = values_by_key(overrides)["checkpoint"][0]
    return Settings(
        checkpoint=checkpoint,
        suite_name=chosen.suite,
        suite=_suite(parser, chosen.suite, chosen.tasks),
        seeds=_seeds(parser, chosen.seeds),
        rate=chosen.rate,
        folder=(chosen.folder or Path("runs/transfer") / _label(checkpoint)).expanduser(),
        dry_run=chosen.dry_run,
        overrides=overrides,
    )


def _parser() -> Parser:
    parser = Parser(
        "transfer",
        usage="checkpoint=<file> [suite=avg5] [key=value ...] [--dry-run]",
        description="Fine-tunes a checkpoint on every data set of a suite and writes the row of the transfer table. "
        "Any key of mixer finetune may be added: trainer=gpu, device_batch=128, image_size=448.",
    )
    add = parser.add_argument
    add(
        "--suite",
        default="avg5",
        metavar="NAME",
        help=f"{', '.join(available())}, or a .yaml file of your own; default: %(default)s",
    )
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
    return parser


def _refuse_wrong(parser: argparse.ArgumentParser, overrides: Sequence[str]) -> None:
    """End the program unless `overrides` are such as a suite's runs take."""
    wrong = [argument for argument in overrides if "=" not in argument or argument.startswith("-")]
    if wrong:
        parser.error(f"'{wrong[0]}' is not of the form key=value")
    keys = [argument.partition("=")[0] for argument in overrides]
    known = _known_keys()
    for root in (key.lstrip("+~").partition(".")[0].partition("/")[0] for key in keys):
        if root == "hydra":
            parser.error("hydra.* is the suite's own: give its runs a place with folder=<folder>")
        if root not in known:
            parser.error(f"unknown key '{root}'{did_you_mean(root, known)}")
    for key in OF_SUITE:
        if key in keys:
            parser.error(f"'{key}' is set by the suite: choose tasks= and seeds=, or use mixer finetune")
    if "checkpoint" not in keys:
        parser.error("'checkpoint' is missing: a file, a run directory, or timm:<name>")


def _known_keys() -> list[str]:
    return [*OPTIONS, *groups(), *(each.name for each in fields(Recipe))]


def _suite(parser: argparse.ArgumentParser, name: str, tasks: str | None) -> Suite:
    """The suite of a name, or what `tasks`, separated by commas, names of it; with the columns of the whole table."""
    try:
        suite, everything = read_suite(name), read_suite("all")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if tasks:
        names = tasks.strip("[]").split(",")
        for each in names:
            if each not in suite.names:
                hint = did_you_mean(each, suite.names) or f": {', '.join(suite.names)}"
                parser.error(f"suite {name} has no '{each}'{hint}")
        suite = suite.only(names)
    if not suite.names:
        parser.error(f"suite {name} has no tasks")
    return replace(suite, columns=tuple(dict.fromkeys((*everything.columns, *suite.columns))))


def _seeds(parser: argparse.ArgumentParser, text: str) -> list[int]:
    try:
        seeds = [int(seed) for seed in text.strip("[]").split(",")]
    except ValueError:
        parser.error(f"seeds={text}: expected whole numbers separated by commas")
    if len(set(seeds)) < len(seeds):
        parser.error(f"seeds={text}: a seed stands there twice")
    return seeds


def _label(checkpoint: str) -> str:
    """What the directory of a suite is called: the checkpoint's name, or that of its run."""
    path = Path(checkpoint.removeprefix(TIMM_SCHEME))
    return path.parent.name if path.name in (BEST, LAST) else path.name
