"""From the command line and conf/ to checked jobs. This room alone imports hydra and omegaconf."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mixer_lightning.config.check import check
from mixer_lightning.config.overrides import (
    as_typed,
    complete_durations,
    expand,
    forced,
    key_of,
    name_of_each_job,
    wrong_on_sight,
)
from mixer_lightning.config.recipe import Job, Recipe, load_recipe
from mixer_lightning.files import CONF
from mixer_lightning.screen import did_you_mean, refuse


class Composition(NamedTuple):
    """What a command line means: its jobs, or messages about all that is wrong with it (then no jobs).

    `overrides` are those of the command line in the form that Hydra takes.
    """

    jobs: list[Job]
    messages: list[str]
    overrides: list[str]


def groups(folders: Sequence[Path] = (CONF,)) -> dict[str, list[str]]:
    """Names of the choices in every group of conf/ (and of further config folders)."""
    found: dict[str, list[str]] = {}
    for folder in folders:
        for path in sorted(folder.glob("*/*.yaml")):
            if path.parent.name not in ("hydra", "suite"):  # suite: of `mixer transfer`
                found.setdefault(path.parent.name, []).append(path.stem)
    return found


def compose(
    config_name: str,
    overrides: Sequence[str] = (),
    *,
    multirun: bool = False,
    folders: Sequence[Path] = (CONF,),
) -> Composition:
    """Compose and check every job of a command line.

    `overrides` are Hydra's (`model=mixer_b16`, `optimizer.lr=0.003`); with `multirun` a value may be a list of
    values. Unknown keys, unknown choices and wrong values are all reported together.
    """
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    known = groups(folders)
    overrides = complete_durations([as_typed(line, multirun) for line in overrides])
    wrong = {line: message for line in overrides if (message := wrong_on_sight(line, known))}
    overrides = [line for line in overrides if line not in wrong]
    if multirun:
        overrides += name_of_each_job(overrides, known)
    search = [f"hydra.searchpath=[{','.join(f'file://{f}' for f in folders[1:])}]"] if folders[1:] else []
    jobs: list[Job] = []
    found: dict[str, str] = {}  # message -> the same with the file that it is about
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            expanded = expand(overrides, multirun, GlobalHydra.instance().config_loader())
            for lines in expanded:
                job = _compose_job(config_name, [*(forced(line, known) for line in lines), *search], multirun)
                jobs.append(job)
                for problem in check(job.recipe):
                    typed = problem.key in {key_of(line) for line in overrides}
                    where = "" if typed else _written_in(problem.key, config_name, job.choices, folders)
                    found.setdefault(problem.message, f"{problem.message}{where}")
            choices = [line for line in expanded[0] if key_of(line) in known]
            standing = _compose_job(config_name, [*choices, *search], multirun).recipe
        except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
            message = _in_our_words(error, overrides, known, folders)
            return Composition([], [*wrong.values(), *found.values(), message], [])
    if wrong or found:
        return Composition([], [*wrong.values(), *found.values()], [])
    stands = flat_keys(standing) | known.keys()
    return Composition(jobs, [], [o if key_of(o) in stands else forced(o, known) for o in overrides])


def _compose_job(config_name: str, overrides: Sequence[str], multirun: bool) -> Job:
    from hydra import compose as hydra_compose
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    config = hydra_compose(config_name, overrides=list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(config)  # ${hydra:...} reads it
    run_dir = f"{config.hydra.sweep.dir}/{config.hydra.sweep.subdir}" if multirun else config.hydra.run.dir
    choices = _chosen(config.hydra.runtime.choices)
    ours = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    recipe = OmegaConf.to_container(ours, resolve=True, throw_on_missing=False)
    assert isinstance(recipe, dict)
    return Job({str(key): value for key, value in recipe.items()}, choices, Path(run_dir))


def _chosen(choices: Mapping[str, Any]) -> dict[str, str]:
    """The file taken from each group of ours: {"model": "mixer_b16", ...}."""
    return {k: str(v) for k, v in choices.items() if not k.startswith("hydra") and v is not None}


def flat_keys(node: Mapping[str, Any], prefix: str = "") -> set[str]:
    """Dotted keys of a nested mapping, of inner nodes too."""
    keys = set()
    for key, value in node.items():
        keys.add(f"{prefix}{key}")
        if isinstance(value, Mapping):
            keys |= flat_keys(value, f"{prefix}{key}.")
    return keys


def compose_one(config_name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The checked recipe of one command line, for notebooks, tests and studies.

    Raises:
        ValueError: listing everything that is wrong.
    """
    jobs, messages, _ = compose(config_name, overrides)
    if messages:
        raise ValueError("\n".join(messages))
    return load_recipe(jobs[0])


def _written_in(key: str, config_name: str, choices: Mapping[str, str], folders: Sequence[Path]) -> str:
    """'  (in conf/experiment/x.yaml)' for a key that a file sets, '' for one of the command line."""
    names = [("_global_", f"{config_name}.yaml")]
    last = ("data", "experiment")  # composed after the other groups, so they have the last word
    for group, choice in sorted(
        choices.items(), key=lambda item: last.index(item[0]) if item[0] in last else -1
    ):
        names += [(group, f"{group}/{name.strip()}.yaml") for name in choice.strip("[]").split(",")]
    found = ""
    for package, name in names:
        for path in (folder / name for folder in folders):
            if path.exists() and _has_key(path, key, package):
                found = f"  (in {os.path.relpath(path)})"
    return found


def _has_key(path: Path, key: str, package: str) -> bool:
    """Whether a YAML file sets a dotted key of the recipe; its `# @package` line counts."""
    text = path.read_text()
    for line in text.splitlines():
        if line.startswith("# @package"):
            package = line.split()[-1]
    prefix = "" if package == "_global_" else f"{package}."
    return key.startswith(prefix) and key.removeprefix(prefix) in flat_keys(yaml.safe_load(text) or {})


def _in_our_words(
    error: Exception, overrides: Sequence[str], known: Mapping[str, Sequence[str]], folders: Sequence[Path]
) -> str:
    """One line for what Hydra or YAML refused."""
    text = str(error)
    if "Ambiguous value" in text or "requires --multirun" in text:
        return f"{text.splitlines()[0].split(' requires')[0]} names several values: add -m (--multirun) for a sweep"
    missing = re.search(r"Could not find '(\w+)/(\w+)'", text)
    if missing and missing[1] in known:
        group, choice = missing.groups()
        chosen = [line.partition("=")[2] for line in overrides if key_of(line) == "experiment"]
        files = [folder / "experiment" / f"{name}.yaml" for folder in folders for name in chosen]
        where = [os.path.relpath(path) for path in files if path.exists() and choice in path.read_text()]
        return f"unknown {group} '{choice}'{did_you_mean(choice, known[group])}" + "".join(
            f"  (in {w})" for w in where
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[:4]) or type(error).__name__


def run_under_hydra(config_name: str, run: Callable[[Recipe, Path], int]) -> list[int]:
    """Let Hydra compose for good, choose the run directory and launch; exit codes of the jobs."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from omegaconf import DictConfig, OmegaConf

    codes: list[int] = []

    def task(config: DictConfig) -> None:
        settings = HydraConfig.get()
        recipe = OmegaConf.to_container(config, resolve=True)
        assert isinstance(recipe, dict)
        job = Job(
            {str(key): value for key, value in recipe.items()},
            _chosen(settings.runtime.choices),
            Path(os.path.relpath(settings.runtime.output_dir)),
        )
        code = run(load_recipe(job), job.run_dir)
        codes.append(code)
        if code > 128:  # asked to stop: the rest of a sweep is not wanted either
            raise SystemExit(code)

    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach us, and not Hydra's own printer
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(task)()
    except HydraException as error:
        refuse([str(error)])
    except OSError as error:
        refuse([f"cannot create the run directory: {error}. Choose another with hydra.run.dir=<folder>."])
    return codes
