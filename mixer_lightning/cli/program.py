"""A program with a recipe: help, compose, check, then one call per job."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from pathlib import Path

from mixer_lightning.config.compose import compose, groups, run_under_hydra
from mixer_lightning.config.recipe import Job, Recipe
from mixer_lightning.files import CONF
from mixer_lightning.screen import refuse


def program(
    config_name: str,
    argv: Sequence[str],
    *,
    run: Callable[[Recipe, Path], int],
    after_sweep: Callable[[Sequence[Path]], int],
    implied: Callable[[Sequence[str], Collection[str]], list[str]] | None = None,
) -> int:
    """A command-line program: help, compose, check, then `run(recipe, run_dir) -> exit code` for every job.

    `after_sweep` gets the run directories of a sweep. `implied(overrides, models)` names further overrides that those
    of the command line imply. Ends with 2 when the recipe is wrong, else with the highest code of the jobs.
    """
    from hydra._internal.utils import get_args_parser

    arguments = get_args_parser().parse_intermixed_args(list(argv))
    if arguments.help:
        print(help_text(config_name))
        return 0
    folders = [CONF, Path(arguments.config_dir).resolve()] if arguments.config_dir else [CONF]
    sweep = bool(arguments.multirun)
    if arguments.cfg == "hydra" or arguments.info or arguments.hydra_help or arguments.shell_completion:
        overrides = list(arguments.overrides)
        jobs: list[Job] = []
    else:
        try:
            more = implied(arguments.overrides, groups(folders)["model"]) if implied else []
        except ValueError as error:
            refuse([str(error)])
            raise  # never reached
        given = [*arguments.overrides, *more]
        jobs, messages, overrides = compose(config_name, given, multirun=sweep, folders=folders)
        if messages:
            refuse(messages)
    flags = [word for word in argv if word not in arguments.overrides]
    sys.argv[1:] = [*flags, *overrides]
    codes = run_under_hydra(config_name, run)
    code = max(codes, default=0)
    if code == 2 and set(codes) != {2}:
        code = 1  # 2 promises that nothing was started
    if sweep and jobs:
        missing = after_sweep([job.run_dir for job in jobs])
        code = code or missing
    return code


#: How each program is started, and with what, for example.
EXAMPLES: dict[str, tuple[str, list[str]]] = {
    "train": (
        "train.py",
        [
            "model=mixer_s16 data=folder data.root=~/birds",
            "experiment=convmixer_256_8_cifar10_25ep trainer=gpu",
            "-m optimizer.lr=0.001,0.003 seed=0,1,2     every combination, then one table",
        ],
    ),
    "finetune": (
        "finetune.py",
        [
            "checkpoint=Mixer-B_16.npz data=folder data.root=~/birds",
            "checkpoint=timm:mixer_b16_224.goog_in21k data=pets image_size=448",
            "-m checkpoint=... data=pets optimizer.lr=0.003,0.01,0.03,0.06 seed=0,1,2     then one table",
        ],
    ),
    "evaluate": (
        "-m mixer_lightning evaluate",
        [
            "checkpoint=runs/finetune/mixer_b16-folder-seed0 evals=[accuracy,confusion]",
            "checkpoint=Mixer-B_16.npz data=cifar10 evals=fewshot",
        ],
    ),
}


def help_text(config_name: str) -> str:
    """What `--help` prints: usage, the choices of every group with their first comment, the root keys."""
    script, examples = EXAMPLES[config_name]
    lines = [
        f"python {script} [group=choice] [key=value] [-m] [--cfg job --resolve]",
        "",
        *(f"  python {script} {example}" for example in examples),
        f"  python {script} experiment=... --cfg job --resolve         print the recipe and stop",
    ]
    for group, choices in groups().items():
        lines += ["", f"{group}="]
        width = max(map(len, choices)) + 2
        for choice in choices:
            lines.append(f"  {choice:<{width}}{_first_comment(CONF / group / f'{choice}.yaml')}")
    lines += ["", "root keys (defaults in conf/" + f"{config_name}.yaml)"]
    keys = ", ".join(f.name for f in fields(Recipe) if f.type != "dict[str, Any]" and f.name != "choices")
    lines += textwrap.wrap(keys, width=100, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(lines)


def _first_comment(path: Path) -> str:
    for line in path.read_text().splitlines():
        if line.startswith("#") and "@package" not in line:
            return textwrap.shorten(line.lstrip("# "), width=90, placeholder=" ...")
    return ""
