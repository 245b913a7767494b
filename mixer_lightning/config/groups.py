"""The choices of conf/: one folder a group, one file a choice. Without Hydra, for a quick answer."""

from __future__ import annotations

from collections.abc import Sequence
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
