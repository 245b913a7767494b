"""From the command line and conf/ to checked jobs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, overload

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from mixer_lightning.config.check import check
from mixer_lightning.config.from_checkpoint import (
    Overrides,
    evaluation_overrides_from_checkpoint,
    overrides_from_checkpoint,
)
from mixer_lightning.config.groups import groups_of
from mixer_lightning.config.hydra_internals import split_sweep
from mixer_lightning.config.messages import explain, written_in
from mixer_lightning.config.overrides import (
    as_text,
    as_typed,
    complete_durations,
    file_name,
    forced,
    key_of,
    member_names,
    name_of_each_job,
    quoted,
    swept_keys,
    values_by_key,
    wrong_on_sight,
    wrong_place,
)
from mixer_lightning.config.recipe import BAGS, AnyRecipe, Duration, EvaluationRecipe, Recipe, load_recipe
from mixer_lightning.config.settle import settled
from mixer_lightning.config.untrusted import only_data
from mixer_lightning.files import CONF
from mixer_lightning.launcher import suffix_of_trial
from mixer_lightning.results import differing_keys

#: The recipe of each program with a config of its name.
ROOTS: dict[str, type[Any]] = {
    "train": Recipe,
    "finetune": Recipe,
    "evaluate": EvaluationRecipe,
}
UNITS = [f.name for f in fields(Duration)]
#: What `checkpoint=...` on the command line implies for a program.
OVERRIDES_FROM_CHECKPOINT: dict[
    str, Callable[[Mapping[str, Sequence[str]], Mapping[str, Sequence[str]]], Overrides]
] = {
    "finetune": overrides_from_checkpoint,
    "evaluate": evaluation_overrides_from_checkpoint,
}

# `suffix` and `trial` of conf/hydra/default.yaml; `file_name` and `member_names` of the directories of a sweep
OmegaConf.register_new_resolver("suffix", lambda value: "" if value is None else f"_{value}", replace=True)
OmegaConf.register_new_resolver("trial", suffix_of_trial, replace=True)
OmegaConf.register_new_resolver("file_name", file_name, replace=True)
OmegaConf.register_new_resolver("member_names", member_names, replace=True)


class Job(NamedTuple, Generic[AnyRecipe]):
    """One composed and checked job of a command line; `config` is Hydra's, with its own settings.

    `varied` is what its sweep varies: the value of every key, the name of every group's file.
    """

    recipe: AnyRecipe
    run_dir: Path
    config: DictConfig
    varied: dict[str, Any]


class Composition(NamedTuple, Generic[AnyRecipe]):
    """What a command line means: its jobs, or messages about all that is wrong with it (then no jobs).

    `overrides` compose to the same in `hydra.main`, in the same process.
    """

    jobs: list[Job[AnyRecipe]]
    messages: list[str]
    overrides: list[str]


@overload
def compose(
    config_name: Literal["train", "finetune"],
    overrides: Sequence[str] = ...,
    *,
    multirun: bool = ...,
    folders: Sequence[Path] = ...,
) -> Composition[Recipe]: ...
@overload
def compose(
    config_name: Literal["evaluate"],
    overrides: Sequence[str] = ...,
    *,
    multirun: bool = ...,
    folders: Sequence[Path] = ...,
) -> Composition[EvaluationRecipe]: ...
@overload
def compose(
    config_name: str, overrides: Sequence[str] = ..., *, multirun: bool = ..., folders: Sequence[Path] = ...
) -> Composition[Any]: ...
def compose(
    config_name: str,
    overrides: Sequence[str] = (),
    *,
    multirun: bool = False,
    folders: Sequence[Path] = (CONF,),
) -> Composition[Any]:
    """Compose and check every job of a command line, each once.

    `overrides` are Hydra's (`model=mixer_b16`, `optimizer.lr=0.003`); with `multirun` a value may be a list of
    values. What their checkpoint implies has its place above all files and below the command line. Unknown keys,
    unknown choices and wrong values are all reported together.
    """
    known, root = groups_of(config_name, folders), ROOTS[config_name]
    given = overrides
    try:
        overrides = complete_durations([as_typed(line, multirun) for line in overrides])
    except RuntimeError as error:  # ~ where nobody is at home
        return Composition([], [f"{str(error).rstrip('.')}: write the folder out instead of ~"], [])
    wrong = {line: message for line in overrides if (message := wrong_on_sight(line, known, root))}
    if "hydra.mode" not in map(key_of, overrides):
        wrong |= {line: message for line in overrides if (message := wrong_place(line, multirun))}
    overrides = [line for line in overrides if line not in wrong]
    stated = values_by_key(overrides)
    from_checkpoint = Overrides({}, {})
    if config_name in OVERRIDES_FROM_CHECKPOINT and not wrong:
        try:
            implied = OVERRIDES_FROM_CHECKPOINT[config_name](stated, known)
            from_checkpoint = only_data(implied, stated, known, folders)
        except ValueError as error:
            return Composition([], [str(error)], [])
    keys = swept_keys(overrides) if multirun else []
    if multirun:
        overrides += name_of_each_job(overrides, known)
    lines = [*_as_overrides(from_checkpoint, stated), *(forced(line, known) for line in overrides)]
    texts: dict[str, str] = {}  # of the command line, which Hydra took for numbers
    jobs: list[Job[Any]] = []
    found: dict[str, str] = {}  # message -> the same with the file that it is about
    with initialize_config_dir(str(CONF), job_name=config_name, version_base="1.3"):
        try:
            further = ",".join(quoted(f"file://{folder}") for folder in folders[1:])
            search = [f"hydra.searchpath=[{further}]"] if further else []
            for number, job_lines in enumerate(split_sweep(lines) if multirun else [lines]):
                config = hydra_compose(config_name, [*job_lines, *search], return_hydra_config=True)
                values = _plain_values(config, job_number=number if multirun else None)
                choices = chosen_files(config.hydra.runtime.choices)
                for problem in check(values, root):
                    if problem.is_text and problem.key in stated:
                        texts |= {
                            line: text
                            for line in given
                            if key_of(line) == problem.key and (text := as_text(line))
                        }
                    where = "  (of the checkpoint)"
                    if problem.key in stated or {f"{problem.key}.{unit}" for unit in UNITS} <= stated.keys():
                        where = ""
                    elif problem.key not in from_checkpoint.values:
                        where = written_in(problem.key, config_name, choices, folders)
                        if problem.is_unknown and problem.key.split(".")[0] in stated:
                            where += f": leave it out with '~{problem.key}'"
                    found.setdefault(problem.message, f"{problem.message}{where}")
                if not found and not wrong:
                    whole = settled(values, stated=stated, choices=choices)
                    if not multirun:  # --cfg shows what is settled, too
                        lines += [
                            f"++{key}={quoted(now) if isinstance(now, str) else now}"
                            for key, _, now in differing_keys(values, whole)
                        ]
                    recipe = load_recipe(root, {**whole, "choices": choices})
                    job = Job(recipe, _run_dir(config, multirun), config, _varied(keys, recipe))
                    if not any(job.run_dir == other.run_dir and recipe == other.recipe for other in jobs):
                        jobs.append(job)
        except (HydraException, OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError) as error:
            found.setdefault("", explain(error, overrides, known, folders))
    if texts:
        again = [texts.get(line, line) for line in given]
        return compose(config_name, again, multirun=multirun, folders=folders)
    found |= {message: message for message in _shared_directories(jobs)}
    if not (jobs or wrong or found):
        found[""] = "the sweep has no jobs: one of its values is an empty list"
    if wrong or found:
        return Composition([], [*wrong.values(), *found.values()], [])
    return Composition(jobs, [], lines)


@overload
def compose_one(config_name: Literal["train", "finetune"], overrides: Sequence[str] = ...) -> Recipe: ...
@overload
def compose_one(config_name: Literal["evaluate"], overrides: Sequence[str] = ...) -> EvaluationRecipe: ...
def compose_one(config_name: str, overrides: Sequence[str] = ()) -> Recipe | EvaluationRecipe:
    """The checked recipe of one command line, for notebooks, tests and studies.

    Raises:
        ValueError: listing everything that is wrong.
    """
    jobs, messages, _ = compose(config_name, overrides)
    if messages:
        raise ValueError("\n".join(messages))
    recipe: Recipe | EvaluationRecipe = jobs[0].recipe
    return recipe


def _as_overrides(from_checkpoint: Overrides, stated: Mapping[str, Any]) -> list[str]:
    """Overrides by which Hydra merges what a checkpoint implies after all files, and before the command line."""
    lines = [f"{group}={choice}" for group, choice in from_checkpoint.choices.items() if group not in stated]
    if from_checkpoint.values:
        node: dict[str, Any] = {}
        for key, value in from_checkpoint.values.items():
            *above, last = key.split(".")
            inner = node
            for name in above:
                inner = inner.setdefault(name, {})
            inner[last] = value
        ConfigStore.instance().store(group="from_checkpoint", name="values", node=node)
        lines.append("+from_checkpoint@_global_=values")
    return lines


def _plain_values(config: DictConfig, *, job_number: int | None) -> dict[str, Any]:
    """The recipe as plain values, interpolations resolved; jobs of a sweep are numbered, as Hydra's launcher does."""
    if job_number is not None:
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = job_number
    HydraConfig.instance().set_config(config)  # ${hydra:...} reads it
    ours = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    values = OmegaConf.to_container(ours, resolve=True, throw_on_missing=False)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _varied(keys: Sequence[str], recipe: Recipe | EvaluationRecipe) -> dict[str, Any]:
    """The values of some keys of a recipe; of a group, the name of its file."""
    values: dict[str, Any] = {}
    for key in (key for key in keys if not key.startswith("hydra")):
        if key in BAGS and key not in recipe.choices:
            values[key] = member_names(getattr(recipe, key))
            continue
        if key in recipe.choices or not hasattr(recipe, key.split(".")[0]):
            values[key] = recipe.choices.get(key)
            continue
        node: Any = recipe.to_dict()
        for name in key.split("."):
            node = node.get(name) if isinstance(node, dict) else None
        values[key] = node
    return values


def _shared_directories(jobs: Sequence[Job[Any]]) -> list[str]:
    """A message for every directory that two different jobs would share."""
    owners: dict[Path, Job[Any]] = {}
    messages = []
    for job in jobs:
        owner = owners.setdefault(job.run_dir, job)
        if owner is not job:
            differing = [key for key in job.varied if job.varied[key] != owner.varied[key]]
            messages.append(
                f"two jobs of the sweep would share {job.run_dir} (they differ in {', '.join(differing)}): give each "
                "its own, by its number with hydra.sweep.subdir='${hydra.job.num}'"
            )
    return list(dict.fromkeys(messages))


def _run_dir(config: DictConfig, multirun: bool) -> Path:
    hydra = config.hydra
    return Path(hydra.sweep.dir, hydra.sweep.subdir) if multirun else Path(hydra.run.dir)


def chosen_files(choices: Mapping[str, Any]) -> dict[str, str]:
    """The file taken from each group of ours, of Hydra's runtime choices: {"model": "mixer_b16", ...}."""
    ours = {
        group: choice
        for group, choice in choices.items()
        if not group.startswith(("hydra", "from_checkpoint"))
    }
    return {group: str(choice) for group, choice in ours.items() if choice is not None}
