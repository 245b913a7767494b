"""The choices of conf/: one folder a group, one file a choice. Without Hydra, for a quick answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mixer_lightning.files import CONF


def groups(folders: Sequence[Path] = (CONF,)) -> dict[str, list[str]]:
    """Names of the choices in every group of conf/ (and of further config folders)."""
    found: dict[str, list[str]] = {}
    for folder in folders:
        for path in sorted(folder.glob("*/*.yaml")):
            if path.parent.name not in ("hydra", "suite"):  # suite: of `mixer transfer`
                found.setdefault(path.parent.name, []).append(path.stem)
    return found


def groups_of(config_name: str, folders: Sequence[Path] = (CONF,)) -> dict[str, list[str]]:
    """Those groups that a program reads: those of its defaults list, and new ones of further folders."""
    defaults = yaml.safe_load((CONF / f"{config_name}.yaml").read_text(encoding="utf-8"))["defaults"]
    listed = {next(iter(each)).removeprefix("optional ") for each in defaults if isinstance(each, dict)}
    elsewhere = groups().keys() - listed
    return {group: choices for group, choices in groups(folders).items() if group not in elsewhere}


#: Choices of data/ that hold whatever a user puts there, a copy of another data set too.
ANY_DATA = ("folder", "shards", "csv")


def numbers_of_other_data(choices: Mapping[str, str]) -> str | None:
    """What to say of a recipe whose numbers are stated for another data set than it reads; None of others."""
    data = choices.get("data", "")
    if data in ANY_DATA:
        return None
    for group in ("experiment", "scratch", "transfer"):
        chosen = choices.get(group, "")
        meant = _data_of_experiment(chosen) if group == "experiment" else chosen.partition("_")[0]
        if meant not in (None, data, *ANY_DATA) and (CONF / "data" / f"{meant}.yaml").is_file():
            return (
                f"{group}={chosen} states numbers for {meant}, and these are {data}: epochs, size of images and "
                f"augmentation may not suit them. Without {group}={chosen} they are what is usual for {data}"
            )
    return None


def numbers_for_other_choices(recipe: Mapping[str, Any], choices: Mapping[str, str]) -> list[str]:
    """What to say of numbers that outlive another choice of their group: AdamW's rate under optimizer=lamb.

    They are those that a file of scratch or transfer sets for its own choice of the group; or of experiment, which
    states all numbers, also those that stood in the others.
    """
    said = []
    sources = (
        {"experiment": None} if "experiment" in choices else {"scratch": "train", "transfer": "finetune"}
    )
    for source, config_name in sources.items():
        path = CONF / source / f"{choices.get(source, '')}.yaml"
        if not path.is_file():
            continue
        content, written_for = _settings(path)
        if config_name is not None:
            written_for = _settings(CONF / f"{config_name}.yaml")[1] | written_for
        for group, choice in written_for.items():
            chosen = CONF / group / f"{choices.get(group, '')}.yaml"
            if (
                choices.get(group) == choice
                or not chosen.is_file()
                or not isinstance(content.get(group), dict)
            ):
                continue
            usual = yaml.safe_load(chosen.read_text(encoding="utf-8"))
            kept = [
                key
                for key, value in content[group].items()
                if recipe[group].get(key) == value != usual.get(key, value)
            ]
            if kept:
                numbers = ", ".join(f"{group}.{key}={_written(content[group][key])}" for key in kept)
                own = " ".join(f"'{group}.{key}={_written(usual[key])}'" for key in kept)
                said.append(
                    f"{source}={choices[source]} states numbers for {group}={choice}, which stay with "
                    f"{group}={choices[group]}: {numbers}. For its own add {own}"
                )
    return said


def _settings(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a file and those that it is made from set, and which choices of groups they make."""
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    found: dict[str, Any] = {}
    choices: dict[str, Any] = {}
    for each in content.pop("defaults", []):
        if isinstance(each, dict):
            choices |= {key.split()[-1].lstrip("/"): choice for key, choice in each.items()}
        elif each != "_self_":
            found, choices = _settings(path.with_name(f"{each}.yaml"))
    for key, value in content.items():
        above = found.get(key)
        found[key] = above | value if isinstance(value, dict) and isinstance(above, dict) else value
    return found, choices


def _written(value: object) -> str:
    """A value as a command line takes it."""
    return json.dumps(value).replace('"', "").replace(" ", "")


def _data_of_experiment(name: str) -> str | None:
    """The choice of data/ that a file of conf/experiment makes."""
    path = CONF / "experiment" / f"{name}.yaml"
    return _settings(path)[1].get("data") if path.is_file() else None
