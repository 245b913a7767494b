"""Transfer suites, read from conf/suite: the tasks of each, and the columns of the transfer table that they fill."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from mixer_lightning.config.signatures import fits
from mixer_lightning.files import CONF
from mixer_lightning.reports.transfer import Column
from mixer_lightning.screen import did_you_mean

FOLDER = CONF / "suite"

#: What a file, a task in it and a column may say. What a file says of tasks holds for all of them.
_TASK = {"overrides": "str", "learning_rates": "list[float]", "dev": "str", "final": "str"}
_FILE = {
    **_TASK,
    "tasks": "dict[str, Any]",
    "fewshot": "dict[str, Any]",
    "columns": "dict[str, Any]",
    "suites": "list[str]",
}
_COLUMN = {"metric": "str", "tasks": "list[str]"}


@dataclass(frozen=True)
class Task:
    """A data set and how it is transferred to, in arguments of `mixer finetune`.

    `overrides` are those of all its runs, `dev` of those that choose a learning rate, `final` of those on all training
    images, which alone see the test set.
    """

    name: str
    overrides: tuple[str, ...]
    learning_rates: tuple[float, ...]
    dev: tuple[str, ...]
    final: tuple[str, ...]


@dataclass(frozen=True)
class Fewshot:
    """A data set on whose frozen features few-shot classifiers are fitted, in arguments of `mixer evaluate`."""

    name: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Suite:
    """What is run, in this order, and the columns of the table."""

    tasks: tuple[Task, ...]
    fewshot: tuple[Fewshot, ...]
    columns: tuple[Column, ...]

    def only(self, names: Collection[str]) -> Suite:
        """The tasks and few-shot data sets of these names; all columns stay."""
        return replace(
            self,
            tasks=tuple(task for task in self.tasks if task.name in names),
            fewshot=tuple(each for each in self.fewshot if each.name in names),
        )

    @property
    def names(self) -> list[str]:
        """Of tasks and few-shot data sets, each once."""
        return list(
            dict.fromkeys([*(task.name for task in self.tasks), *(data.name for data in self.fewshot)])
        )


def available() -> list[str]:
    """Names of the suites in conf/suite."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_suite(name: str, *, within: tuple[Path, ...] = ()) -> Suite:
    """The suite of a name in conf/suite, or of a path that ends in .yaml; `within`: the files that led to it.

    Raises:
        ValueError: there is no such suite, it is a part of itself, or something in its file is wrong; the message
            names the file.
    """
    path = Path(name).expanduser() if name.endswith(".yaml") else FOLDER / f"{name}.yaml"
    if not path.is_file():
        hint = (
            did_you_mean(name, available())
            or f": there are {', '.join(available())}, or a path to a .yaml file"
        )
        raise ValueError(f"there is no suite '{name}'{hint}")
    where = os.path.relpath(path)
    if path.resolve() in within:
        raise ValueError(f"{where}: suites: the suite is a part of itself")
    try:
        node = _checked(yaml.safe_load(path.read_text(encoding="utf-8")) or {}, _FILE, where)
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: {error}") from error
    parts = [read_suite(part, within=(*within, path.resolve())) for part in node.get("suites", [])]
    tasks = tuple(_task(where, task, content, node) for task, content in node.get("tasks", {}).items())
    fewshot = tuple(
        Fewshot(str(data), _arguments(f"{where}: fewshot.{data}", content))
        for data, content in node.get("fewshot", {}).items()
    )
    columns = tuple(
        _column(where, column, content, [task.name for task in tasks])
        for column, content in node.get("columns", {}).items()
    )
    return Suite(
        (*(task for part in parts for task in part.tasks), *tasks),
        (*(each for part in parts for each in part.fewshot), *fewshot),
        (*(column for part in parts for column in part.columns), *columns),
    )


def _task(where: str, name: str, content: Any, common: Mapping[str, Any]) -> Task:
    where = f"{where}: tasks.{name}"
    node = _checked(content, _TASK, where)
    rates = node.get("learning_rates", common.get("learning_rates", []))
    if not rates or min(rates) <= 0:
        raise ValueError(f"{where} needs learning_rates above 0, found {rates}")
    overrides, dev, final = (
        (
            *_arguments(where, common.get(key, "")),
            *_arguments(f"{where}.{key}", node.get(key, "")),
        )
        for key in ("overrides", "dev", "final")
    )
    return Task(str(name), overrides, tuple(rates), dev, final)


def _column(where: str, name: str, content: Any, tasks: list[str]) -> Column:
    where = f"{where}: columns.{name}"
    node = _checked(content, _COLUMN, where)
    if "metric" not in node:
        raise ValueError(f"{where} needs a metric, such as test/top1")
    for task in node.get("tasks", []):
        if task not in tasks:
            raise ValueError(f"{where} has an unknown task '{task}'{did_you_mean(task, tasks)}")
    return Column(str(name), node["metric"], tuple(node.get("tasks", tasks)))


def _arguments(where: str, text: Any) -> tuple[str, ...]:
    """Arguments of a command line: `data=pets test_split=none`."""
    if not isinstance(text, str):
        raise ValueError(f"{where} takes arguments such as data=pets test_split=none, found {text!r}")
    try:
        arguments = tuple(shlex.split(text))
    except ValueError as error:  # of a quote that is not closed
        raise ValueError(f"{where}: {error}: {text}") from error
    wrong = [argument for argument in arguments if "=" not in argument]
    if wrong:
        raise ValueError(f"{where}: '{wrong[0]}' is not of the form key=value")
    return arguments


def _checked(node: Any, known: Mapping[str, str], where: str) -> dict[str, Any]:
    """A mapping that holds known keys only, each of its type."""
    if not isinstance(node, dict):
        raise ValueError(f"{where} must be a mapping, found {node!r}")
    for key, value in node.items():
        if key not in known:
            raise ValueError(f"{where}: unknown key '{key}'{did_you_mean(str(key), known)}")
        if not fits(known[key], value):
            raise ValueError(f"{where}: '{key}' takes {known[key]}, found {value!r}")
    return node
