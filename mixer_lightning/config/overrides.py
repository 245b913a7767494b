"""Hydra's command-line grammar: what a user types, as Hydra takes it."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Transformer
from hydra.errors import HydraException

from mixer_lightning.config.arguments import without_value
from mixer_lightning.config.elsewhere import CHOICES_ELSEWHERE, meant
from mixer_lightning.config.recipe import BAGS, EvaluationRecipe, Recipe
from mixer_lightning.files import CONF
from mixer_lightning.results import GLOBAL_GROUPS
from mixer_lightning.screen import did_you_mean

SUBMITIT = "hydra_plugins.hydra_submitit_launcher"
LONGEST_IN_NAME = 100  # bytes of a swept value in the name of a run directory, which holds 255 in all


def as_typed(override: str, multirun: bool) -> str:
    """`data.root=~/my birds (2)` with the home directory written out, and quoted: Hydra's grammar has its own ideas.

    A value that looks like a path is taken as it is typed, except that a sweep splits it at commas, also where its
    paths hold what the grammar has no place for: `checkpoint=runs/a-optimizer.lr=0.1,runs/a-optimizer.lr=0.2`.
    """
    key, equals, value = override.partition("=")
    if key in GLOBAL_GROUPS and value == "null":  # no file of that group: Hydra's own form of it
        return f"~{key}"
    value = re.sub(r"(^\[?|,)~(?=/|,|\]|$)", lambda match: match[1] + str(Path.home()), value)
    override = f"{key}{equals}{value}"
    if value[:1] in ("[", "{") and not _parses(override):  # a pattern such as {000..009}, or a list of them
        if value[0] == "[" and value[-1] == "]":
            return f"{key}=[{','.join(_element(key, part) for part in split_values(value[1:-1]))}]"
        if value[0] == "{" and not multirun:
            return f"{key}={quoted(value)}"
    parts = split_values(value) if multirun else []
    if not value or (value[0] in "'\"[{" and len(parts) < 2):
        return override
    is_path = value.startswith(("/", "./", "../")) and not multirun
    if _parses(override):
        return f"{key}={quoted(value)}" if is_path else override
    return f"{key}={','.join(_element(key, part) for part in parts) or quoted(value)}"


def as_text(override: str) -> str | None:
    """A value that Hydra took for a number or truth value, as it was typed: name=12e4567; None for anything else."""
    key, _, value = override.partition("=")
    parts = split_values(value)
    if not all(re.fullmatch(r"[\w.+-]+", part) for part in parts):
        return None
    return f"{key}={','.join(map(quoted, parts))}"


def split_values(text: str) -> list[str]:
    """The values of a sweep as they are typed: parts between commas outside quotes, brackets and after no backslash."""
    parts, depth, quote, before = [""], 0, "", ""
    for character in text:
        if character == "," and not depth and not quote and before != "\\":
            parts.append("")
        else:
            parts[-1] += character
        if quote:
            quote = "" if character == quote and before != "\\" else quote
        elif character in "'\"" and not parts[-1][:-1].strip(" [{("):
            quote = character
        elif character in "[{(":
            depth += 1
        elif character in "]})":
            depth = max(0, depth - 1)
        before = character
    return [part.strip() for part in parts]


def _element(key: str, part: str) -> str:
    """One value of a sweep, quoted where the grammar would not take it as it is."""
    return part if _parses(f"{key}={part}") else quoted(part.replace("\\,", ","))


def _parses(override: str) -> bool:
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True


def quoted(text: str) -> str:
    """A text in Hydra's quotes, where only backslashes before a quote, or at the end, stand for anything else."""
    escaped = re.sub(r"(\\*)('|\Z)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), text)
    return f"'{escaped}'"


def values_by_key(overrides: Sequence[str]) -> dict[str, list[str]]:
    """What a command line gives to each key, as texts without quotes: one value, or those of a sweep."""
    return {key_of(override): _values_of(override) for override in overrides}


def _values_of(override: str) -> list[str]:
    text = override.partition("=")[2]
    try:
        parsed = OverridesParser.create().parse_override(override)
        if parsed.is_sweep_override():
            return [str(getattr(each, "text", each)) for each in parsed.sweep_iterator(Transformer.identity)]
    except HydraException:  # glob(*) needs the choices; of anything else composing says what is wrong
        return [text]
    value = parsed.value()
    return [value if isinstance(value, str) else text]


def complete_durations(overrides: Sequence[str]) -> list[str]:
    """Let `duration.steps=100` on the command line replace the epochs that a file names, and the reverse."""
    keys = {key_of(line) for line in overrides}
    extra = []
    for f in fields(Recipe):
        if f.type == "Duration":
            steps, epochs = f"{f.name}.steps", f"{f.name}.epochs"
            if steps in keys and epochs not in keys:
                extra.append(f"++{epochs}=null")
            if epochs in keys and steps not in keys:
                extra.append(f"++{steps}=null")
    return [*overrides, *extra]


def key_of(override: str) -> str:
    """The key of an override, without its package."""
    return override.partition("=")[0].lstrip("+~").partition("@")[0]


def forced(override: str, known: Mapping[str, Any]) -> str:
    """A plain `key=value` as `++key=value`: Hydra takes it, and `check` says what is wrong with it."""
    if override[0] in "+~" or key_of(override) in known or key_of(override).startswith("hydra"):
        return override
    return f"++{override}"


def name_of_each_job(overrides: Sequence[str], known: Mapping[str, Any]) -> list[str]:
    """The override that adds what a sweep varies to the names of its run directories."""
    varied = [key for key in swept_keys(overrides) if key not in ("model", "data", "data.task", "seed")]
    stated = values_by_key(overrides)
    if not varied or "hydra.sweep.subdir" in stated:
        return []
    values = {key: f"hydra:runtime.choices.{key}" if key in known else key for key in varied}
    for key in (key for key in varied if key in BAGS and any(text[0] == "[" for text in stated[key])):
        values[key] = f"member_names:${{{key}}}"  # of lists Hydra keeps no choices
    name = "-".join(f"{key}=${{file_name:${{{value}}}}}" for key, value in values.items())
    subdir = yaml.safe_load((CONF / "hydra" / "default.yaml").read_text(encoding="utf-8"))["sweep"]["subdir"]
    return [f"hydra.sweep.subdir='{subdir}-{name}'"]


def swept_keys(overrides: Sequence[str]) -> list[str]:
    """The keys and groups to which a command line gives several values."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException:
        return []  # composing says what is wrong
    return list(dict.fromkeys(each.key_or_group for each in parsed if each.is_sweep_override()))


def file_name(value: object) -> str:
    """A value as a part of a file's name: without slashes, and its end with a hash in front where it is long."""
    text = str(value).replace("/", "_").replace("\0", "_")
    encoded = text.encode(errors="surrogateescape")
    if len(encoded) <= LONGEST_IN_NAME:
        return text
    end = encoded[-LONGEST_IN_NAME + 10 :].decode(errors="ignore")
    return f"{hashlib.sha256(encoded).hexdigest()[:8]}..{end}"


def member_names(bag: Mapping[str, Any]) -> str:
    """What the members of a group are called, `accuracy+macro`; `none` of an empty one."""
    return "+".join(map(str, bag)) or "none"


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # the package that it is part of
        return False


def wrong_place(override: str, multirun: bool) -> str | None:
    """What is wrong with an override that gives a place to a run in a sweep, or to a sweep of a single run."""
    key = key_of(override)
    if multirun and key == "hydra.run.dir":
        return "hydra.run.dir is of one run: with -m it is hydra.sweep.dir=<folder of all>"
    if not multirun and key in ("hydra.sweep.dir", "hydra.sweep.subdir"):
        return f"{key} is of a sweep: without -m it is hydra.run.dir=<folder>"
    return None


def wrong_on_sight(
    override: str, known: Mapping[str, list[str]], root: type[Recipe] | type[EvaluationRecipe]
) -> str | None:
    """What is wrong with an override that is not `key=value`, has an unknown root key, or an unknown choice.

    `known` are the choices of every group of the program, and `root` its recipe.
    """
    if override.startswith("~"):
        return None
    key, equals, value = override.partition("=")
    if not equals:
        return f"'{override}' is not of the form key=value"
    if key in known and not any(c in value for c in "*()"):
        names = [name.strip() for part in split_values(value) for name in part.strip("[]").split(",")]
        for choice in filter(None, names):
            if choice not in known[key] and not (key in GLOBAL_GROUPS and choice == "null"):
                near = CHOICES_ELSEWHERE.get(key, {}).get(choice, choice)
                hint = did_you_mean(near, known[key]) or f". There are: {', '.join(known[key])}"
                return f"unknown {key} '{choice}'{hint}"
    if message := without_value(override):
        return message
    if key == "hydra/launcher" and value.startswith("submitit_") and not _is_installed(SUBMITIT):
        return f"{override} needs submitit: pip install -e '.[slurm]'"
    first = key_of(override).split(".")[0].split("/")[0]
    everything = [*known, *(f.name for f in fields(root)), "hydra"]
    if first in everything:
        return None
    hint = "" if "." in key else meant(first, value, everything)
    return f"unknown key '{first}'{hint or did_you_mean(first, everything)}"
