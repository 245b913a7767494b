"""The choices of conf/: one folder a group, one file a choice. Without Hydra, for a quick answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

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


def _data_of_experiment(name: str) -> str | None:
    """The choice of data/ that a file of conf/experiment makes."""
    path = CONF / "experiment" / f"{name}.yaml"
    if not name or not path.is_file():
        return None
    defaults = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("defaults", [])
    return next((str(each["override /data"]) for each in defaults if "override /data" in each), None)
