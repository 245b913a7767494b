"""Search for the best setting with Optuna: `mixer search train optimizer.lr='tag(log,interval(1e-4,1e-2))' ...`."""

from __future__ import annotations

import argparse
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from mixer_lightning import launcher
from mixer_lightning.children import num_processes
from mixer_lightning.cli.program import further_folder, root_keys
from mixer_lightning.cli.subcommands import choose
from mixer_lightning.config.arguments import Parser, without_dashes
from mixer_lightning.config.compose import compose
from mixer_lightning.config.hydra_internals import parse_flags
from mixer_lightning.config.space import Space, space_of
from mixer_lightning.files import CONF
from mixer_lightning.screen import Screen, refuse

PROGRAMS = {"train": "search settings of a training from scratch", "finetune": "of a transfer"}


def settings(program: str, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The search's own options, search.*, and the words for its trainings; a wrong one ends the program."""
    mine = [word for word in argv if word.removeprefix("--").startswith("search.")]
    parser = Parser(
        f"search {program}",
        usage="<key>=<values or interval> ... [search.trials=N] [search.metric=val/top1] [key=value ...]",
        description="Trials of settings that Optuna proposes. Values: a,b  interval(0,1)  tag(log,interval(1e-4,0.1))\n"
        "int(interval(2,8))  range(2,10,2); seed=0,1,2 is not searched: each trial is the mean over these.",
    )
    add = parser.add_argument
    add("--search.trials", dest="trials", type=int, default=20, metavar="N", help="default: %(default)s")
    add("--search.metric", dest="metric", default="val/top1", metavar="NAME", help="default: %(default)s")
    add("--search.startup", dest="startup", type=int, default=5, metavar="N",
        help="random trials at first, none of which is pruned; default: %(default)s")  # fmt: skip
    add("--search.pruner", dest="pruner", choices=["median", "none"], default="median",
        help="stop trials that are worse than the median at an evaluation; default: %(default)s")  # fmt: skip
    add("--search.seed", dest="seed", type=int, default=0, metavar="N", help="of the proposals; default: 0")
    if {"-h", "--help"} & set(argv):
        parser.parse_args(["--help"])
    chosen = parser.read([word.removeprefix("--") for word in mine])
    parser.check_at_least(1, chosen, "trials")
    parser.check_at_least(0, chosen, "startup", "seed")
    if chosen.metric.startswith(("test/", "train/")):
        message = (
            f"search.metric={chosen.metric} would choose by test or training images: use one of val; "
            "train_split='train[:90%]' val_split='train[90%:]' makes a val split of training images"
        )
        refuse([message])
    return chosen, [word for word in argv if word not in mine]


def main(argv: Sequence[str]) -> int:
    """Parse, check every end of the space, search; the exit code."""
    selected = choose("mixer search", "program", PROGRAMS, argv)
    if selected is None:
        return 0
    program, rest = selected
    chosen, words = settings(program, rest)
    if importlib.util.find_spec("optuna") is None:
        refuse(["mixer search needs Optuna: pip install -e '.[search]'"])
    screen = Screen()
    try:
        if (launcher.launched() or launcher.ALONE).world_size > 1:
            raise ValueError(
                "a search starts its trainings itself, one after the other: start it without a launcher"
            )
        words = without_dashes(words, root_keys(program))
        parsed = parse_flags(words, root_keys(program))
        unknown = [word for word in words if re.match("-(?!-config-dir(=|$)|cd$)", word)]
        if unknown:
            raise ValueError(f"unknown option '{unknown[0]}'")
        folders = further_folder(parsed.config_dir)
        space = space_of(parsed.overrides)
        folder, processes = _checked(program, space, [CONF, *folders], chosen.metric)
        from mixer_lightning.studies.search import Search, carry_out  # Optuna: a second

        search = Search(
            program=program,
            space=space,
            folder=folder,
            metric=chosen.metric,
            trials=chosen.trials,
            startup=chosen.startup,
            prune=chosen.pruner == "median",
            seed=chosen.seed,
            processes=processes,
            flags=[f"--config-dir={folder}" for folder in folders],
        )
        return carry_out(search, screen)
    except (ValueError, OSError) as error:
        screen.say(str(error))
        return 2


def _checked(program: str, space: Space, folders: Sequence[Path], metric: str) -> tuple[Path, int]:
    """The folder of the search, and how many processes its trainings have; every end of the space composes.

    Raises:
        ValueError, OSError: what is wrong with the recipe, its data or one of the values; or nothing yields `metric`.
    """
    if any(line.startswith("hydra.") for line in space.fixed):
        raise ValueError("hydra.* is the search's own: give it a place with name=<word>")
    messages: dict[str, None] = {}
    job = None
    for line in space.examples():
        composition = compose(program, line, folders=folders)
        messages |= dict.fromkeys(composition.messages)
        job = composition.jobs[0] if composition.jobs else job
    if messages or job is None:
        raise ValueError("\n".join(messages))
    if job.recipe.fast_dev_run:
        raise ValueError("fast_dev_run keeps no figures to search by: try one training first, without search")
    processes = num_processes(job.recipe.trainer)
    from mixer_lightning.studies.search import check_metric  # torch: seconds

    check_metric(metric, job.recipe)
    return job.run_dir.absolute().parent / "search", processes
