"""Which file a wrong key stands in, and what Hydra refused, in one line."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mixer_lightning.config.overrides import key_of
from mixer_lightning.config.recipe import BAGS
from mixer_lightning.results import GLOBAL_GROUPS
from mixer_lightning.screen import did_you_mean


def written_in(key: str, config_name: str, choices: Mapping[str, str], folders: Sequence[Path]) -> str:
    """'  (in conf/experiment/x.yaml)' for a key of the recipe that a file sets, '' where none does.

    Of several files it is the one that is composed last, and so has the last word.
    """
    names = [("_global_", f"{config_name}.yaml")]
    by_order = sorted(choices, key=lambda group: GLOBAL_GROUPS.index(group) if group in GLOBAL_GROUPS else -1)
    for group in by_order:
        names += [(group, f"{group}/{name.strip()}.yaml") for name in choices[group].strip("[]").split(",")]
    found = ""
    for package, name in names:
        for path in (folder / name for folder in folders):
            if path.exists() and _has_key(path, key, package):
                found = f"  (in {os.path.relpath(path)})"
    return found


def _has_key(path: Path, key: str, package: str) -> bool:
    """Whether a YAML file sets a dotted key of the recipe; its `# @package` line counts."""
    text = path.read_text(encoding="utf-8")
    for line in text.splitlines():
        if line.startswith("# @package"):
            package = line.split()[-1]
    prefix = "" if package == "_global_" else f"{package}."
    return key.startswith(prefix) and key.removeprefix(prefix) in _dotted_keys(yaml.safe_load(text) or {})


def _dotted_keys(node: Mapping[str, Any], prefix: str = "") -> set[str]:
    """Dotted keys of a nested mapping, of inner nodes too."""
    keys = set()
    for key, value in node.items():
        keys.add(f"{prefix}{key}")
        if isinstance(value, Mapping):
            keys |= _dotted_keys(value, f"{prefix}{key}.")
    return keys


def _is_utf8(path: Path) -> bool:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True


def explain(
    error: Exception, overrides: Sequence[str], known: Mapping[str, Sequence[str]], folders: Sequence[Path]
) -> str:
    """One line for what Hydra, OmegaConf or YAML refused."""
    text = str(error)
    if isinstance(error, UnicodeDecodeError):
        files = [path for folder in folders for path in folder.glob("*/*.yaml") if not _is_utf8(path)]
        return f"not text in UTF-8: {', '.join(map(os.path.relpath, files))}"
    several = re.search(r"'\+*((\w[^=]*)=.*)'", text.splitlines()[0] if text else "")
    if several and ("Ambiguous value" in text or "requires --multirun" in text):
        override, key = several.groups()
        if key in BAGS:
            one = f"'{key}=[{override.partition('=')[2]}]'"
            return f"{override} names several values: all in one run are {one}; a sweep over them takes -m (--multirun)"
        return f"{override} names several values: add -m (--multirun) for a sweep"
    without_package = re.search(r"Could not override '[\w/]+@(\w+)\.", text)
    if without_package and without_package[1] in GLOBAL_GROUPS:
        return f"the file of {without_package[1]} lacks its first line, # @package _global_"
    missing = re.search(r"Could not find '(\w+)/(\w+)'", text)
    if missing and missing[1] in known:
        group, choice = missing.groups()
        chosen = [line.partition("=")[2] for line in overrides if key_of(line) == "experiment"]
        files = [folder / "experiment" / f"{name}.yaml" for folder in folders for name in chosen]
        where = [
            os.path.relpath(path)
            for path in files
            if path.exists() and choice in path.read_text(encoding="utf-8")
        ]
        return f"unknown {group} '{choice}'{did_you_mean(choice, known[group])}" + "".join(
            f"  (in {path})" for path in where
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[:4]) or type(error).__name__
