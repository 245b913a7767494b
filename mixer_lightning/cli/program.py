"""A program with a recipe: help, compose, check, then one call per job."""

from __future__ import annotations

import contextlib
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import mixer_lightning
from mixer_lightning import launcher
from mixer_lightning.config.arguments import without_dashes
from mixer_lightning.config.compose import ROOTS, compose
from mixer_lightning.config.groups import groups_of
from mixer_lightning.config.hydra_internals import parse_flags
from mixer_lightning.config.launch import ask_hydra, launch
from mixer_lightning.files import CONF
from mixer_lightning.screen import refuse
from mixer_lightning.stopping import Stopped


def program(
    config_name: str,
    argv: Sequence[str],
    *,
    run: Callable[[Any, Path], int],
    after_sweep: Callable[[Mapping[Path, Mapping[str, Any]], Mapping[Path, str]], int],
) -> int:
    """A command-line program: help, compose, check, then `run(recipe, run_dir) -> exit code` for every job.

    `after_sweep` gets the run directories of a sweep, each with what was varied, keys and their values, and what those
    that failed have said. Ends with 2 when the recipe is wrong, else with the highest code of the jobs.
    """
    if "--version" in argv:
        print(f"mixer-lightning {mixer_lightning.__version__}")
        return 0
    if not launcher.is_one_of_several():
        return _program(config_name, argv, run=run, after_sweep=after_sweep)
    begun = False

    def begin(recipe: Any, run_dir: Path) -> int:
        nonlocal begun
        begun = True
        return run(recipe, run_dir)

    try:
        return _program(config_name, argv, run=begin, after_sweep=after_sweep)
    except SystemExit as end:
        if end.code and not begun:
            _tell_others(end)
        raise


def _tell_others(end: SystemExit) -> None:
    """The other processes of a launch may have another command line, and would wait for this one."""
    launch, code = launcher.launched(), end.code
    assert launch is not None
    what = "was asked to stop" if isinstance(end, Stopped) else "refused its command line"
    launcher.hush()
    with contextlib.suppress(Exception):  # torch may have been interrupted in the midst of its import
        from mixer_lightning.engine import presence  # torch: seconds

        presence.tell_at_start(launch, code if isinstance(code, int) else 1, f"{what} before it began")


def _program(
    config_name: str,
    argv: Sequence[str],
    *,
    run: Callable[[Any, Path], int],
    after_sweep: Callable[[Mapping[Path, Mapping[str, Any]], Mapping[Path, str]], int],
) -> int:
    keys = root_keys(config_name)
    argv = without_dashes(argv, keys)
    flags = parse_flags(argv, keys)
    folders = [CONF, *further_folder(flags.config_dir)]
    if flags.help:
        print(help_text(config_name, folders))
        return 0
    if flags.config_name or flags.config_path or flags.experimental_rerun:
        refuse(
            [
                f"recipes are those of conf/{config_name}.yaml: add files of your own with --config-dir=<folder>"
            ]
        )
    if flags.resolve and not flags.cfg:
        refuse(["--resolve belongs to --cfg: --cfg job --resolve"])
    if flags.multirun and flags.cfg:
        refuse(["--cfg shows the recipe of one job: leave out -m"])
    if flags.multirun and _num_processes() > 1:
        refuse(["a sweep's jobs run one after the other in one process: start it without a launcher"])
    if flags.cfg == "hydra" or flags.info or flags.hydra_help or flags.shell_completion:
        ask_hydra(config_name, argv)
        return 0
    composition = compose(config_name, flags.overrides, multirun=flags.multirun, folders=folders)
    if composition.messages:
        refuse(composition.messages)
    others = [argument for argument in argv if argument not in flags.overrides]
    if flags.cfg:
        ask_hydra(config_name, [*others, *composition.overrides])
        return 0
    errors: dict[Path, str] = {}
    codes = launch(config_name, composition, run, flags=others, multirun=flags.multirun, errors=errors)
    code = max(codes, default=0)
    if code == 2 and set(codes) != {2}:
        code = 1  # 2 promises that nothing was started
    if flags.multirun:
        kept = [job for job in composition.jobs if not getattr(job.recipe, "fast_dev_run", None)]
        missing = after_sweep({job.run_dir: job.varied for job in kept}, errors) if kept else 0
        code = code or missing
    return code


def root_keys(config_name: str) -> list[str]:
    """What may stand at the beginning of an override: groups and root keys of a program, and hydra."""
    return [*groups_of(config_name), *(f.name for f in fields(ROOTS[config_name])), "hydra"]


def _num_processes() -> int:
    try:
        return (launcher.launched() or launcher.ALONE).world_size
    except ValueError as error:
        refuse([str(error)])


def further_folder(config_dir: str | None) -> list[Path]:
    """The folder of --config-dir, which must be there."""
    if config_dir is None:
        return []
    folder = Path(config_dir).expanduser().resolve()
    if not folder.is_dir():
        refuse([f"--config-dir: there is no folder {folder}"])
    return [folder]


#: With what each program is started, for example.
EXAMPLES: dict[str, list[str]] = {
    "train": [
        "model=mixer_s16 data=folder data.root=~/birds",
        "experiment=convmixer_256_8_cifar10_25ep trainer=gpu",
        "-m optimizer.lr=0.001,0.003 seed=0,1,2     every combination, then one table",
        "experiment=mixer_b16_imagenet1k plan=true   what it would take; also plan.devices= plan.price=",
    ],
    "finetune": [
        "checkpoint=Mixer-B_16.npz data=folder data.root=~/birds",
        "checkpoint=timm:mixer_b16_224.goog_in21k data=pets image_size=448",
        "-m checkpoint=... data=pets optimizer.lr=0.003,0.01,0.03,0.06 seed=0,1,2     then one table",
    ],
    "evaluate": [
        "checkpoint=runs/finetune/mixer_b16-folder-seed0 evals=[accuracy,confusion]",
        "checkpoint=Mixer-B_16.npz data=cifar10 evals=fewshot",
    ],
}


def help_text(config_name: str, folders: Sequence[Path] = (CONF,)) -> str:
    """What `--help` prints: usage, the choices of every group with their first comment, the root keys."""
    command, examples = f"mixer {config_name}", EXAMPLES[config_name]
    lines = [
        f"{command} [group=choice] [key=value] [-m] [--cfg job --resolve]",
        "",
        *(f"  {command} {example}" for example in examples),
        f"  {command} ... --cfg job --resolve         print the recipe and stop",
    ]
    for group, choices in groups_of(config_name, folders).items():
        lines += ["", f"{group}="]
        width = max(map(len, choices)) + 2
        for choice in choices:
            file = next(p for folder in folders if (p := folder / group / f"{choice}.yaml").exists())
            lines.append(f"  {choice:<{width}}{_first_comment(file)}".rstrip())
    lines += ["", f"root keys (defaults in conf/{config_name}.yaml)"]
    keys = [f.name for f in fields(ROOTS[config_name]) if not str(f.type).startswith("dict[")]
    about = _comments_of_keys(CONF / f"{config_name}.yaml")
    width = max(map(len, keys)) + 2
    lines += [f"  {key:<{width}}{about.get(key, '')}".rstrip() for key in keys]
    return "\n".join(lines)


def _comments_of_keys(path: Path) -> dict[str, str]:
    """{key: comment behind it} of the root of a YAML file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = (re.match(r"(\w+):[^#]*# *(.*)", line) for line in lines)
    return {each[1]: each[2] for each in found if each is not None}


def _first_comment(path: Path) -> str:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("#") and "@package" not in line:
            return textwrap.shorten(line.lstrip("# "), width=90, placeholder=" ...")
    return ""
