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
from dataclasses import dataclass, replace
from pathlib import Path

from mixer_lightning import results
from mixer_lightning.checkpoints.families import TIMM_SCHEME
from mixer_lightning.config.arguments import Parser
from mixer_lightning.config.from_checkpoint import check_there
from mixer_lightning.config.overrides import key_of, values_by_key
from mixer_lightning.results import BEST, LAST
from mixer_lightning.screen import Screen, did_you_mean
from mixer_lightning.studies.suites import Suite, available, read_suite
from mixer_lightning.studies.training_runs import read_settings
from mixer_lightning.studies.transfer_plan import show_plan
from mixer_lightning.studies.transfer_runs import SuiteRuns, run_all, write_table

OPTIONS = ("suite", "tasks", "seeds", "rate", "folder")
#: Keys of `mixer finetune` that a suite sets.
OF_SUITE = dict.fromkeys(
    (
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
    ),
    "tasks= and seeds=, or mixer finetune",
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
    chosen, overrides = read_settings(
        parser, argv, OPTIONS, set_for_runs=OF_SUITE, program="finetune", whose="suite"
    )
    if "checkpoint" not in map(key_of, overrides):
        parser.error("'checkpoint' is missing: a file, a run directory, or timm:<name>")
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
