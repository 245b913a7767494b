"""Everything that is wrong with a composed recipe, found before torch is imported.

Plain Hydra lets most typing errors inside a YAML file through in silence. Here every mapping of a recipe answers
to a signature: the root to a dataclass of config/recipe.py, every other mapping to the callable that its `_target_`
names.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from mixer_lightning.config.recipe import BAGS, PARTIALS, RUNTIME_ARGS, Duration, EvaluationRecipe, Recipe
from mixer_lightning.config.signatures import Parameter, describe, fits, out_of_range, signature
from mixer_lightning.results import GLOBAL_GROUPS
from mixer_lightning.screen import did_you_mean

UNSET = "???"  # of a key that a YAML file leaves to the command line


class Problem(NamedTuple):
    """What is wrong at a dotted key of the recipe."""

    key: str
    message: str
    is_text: bool = False  # a number or truth value where a text is taken: it may have been meant as one
    is_unknown: bool = False  # nothing takes the key


def check(recipe: Mapping[str, Any], root: type[Recipe] | type[EvaluationRecipe]) -> list[Problem]:
    """Everything that is wrong with a composed recipe: unknown, missing and ill-typed keys, all at once.

    `recipe` holds plain values, without `choices`; `root` says which keys the program reads.
    """
    problems = list(_check_root(recipe, root))
    roots = {f.name for f in fields(root)}
    nodes = [f.name for f in fields(root) if f.type == "dict[str, Any]" and f.name in recipe]
    for group in nodes:
        node = recipe[group]
        if not isinstance(node, Mapping):
            problems.append(Problem(group, f"'{group}' must be a mapping, found {node!r}"))
            continue
        runtime_args = {
            key: where if where is not None and where.split(".")[0] in (*roots, "hydra") else None
            for key, where in RUNTIME_ARGS.get(group, {}).items()
        }
        if group in BAGS and "_target_" in node:
            line = f"# @package {group}.<name>"
            problems.append(Problem(f"{group}._target_", f"the file of {group} lacks its first line, {line}"))
        elif group in BAGS:
            for name, member in node.items():
                problems += _check_node(f"{group}.{name}", member, runtime_args)
        else:
            problems += _check_node(group, node, runtime_args)
    return problems


def _check_root(recipe: Mapping[str, Any], root: type[Recipe] | type[EvaluationRecipe]) -> Iterator[Problem]:
    known = {f.name: Parameter(str(f.type), True) for f in fields(root) if f.name != "choices"}
    without_package = [group for group in GLOBAL_GROUPS if isinstance(recipe.get(group), Mapping)]
    for group in without_package:
        key = ".".join([group, *list(recipe[group])[:1]])
        yield Problem(key, f"the file of {group} lacks its first line, # @package _global_")
    yield from _check_keys("", {k: v for k, v in recipe.items() if k not in without_package}, known)
    for key, parameter in known.items():
        value = recipe.get(key)
        if parameter.annotation == "Duration" and isinstance(value, Mapping):
            yield from _check_duration(key, value)
    batch_size, repeats = recipe.get("batch_size"), recipe.get("repeats")
    if isinstance(batch_size, int) and isinstance(repeats, int) and repeats > batch_size > 0:
        yield Problem(
            "repeats",
            f"'repeats' must be at most batch_size, {batch_size}: a batch holds all repeats of a sample; "
            f"found {repeats}",
        )


def _check_duration(key: str, value: Mapping[str, Any]) -> Iterator[Problem]:
    known = {f.name: Parameter(str(f.type), False) for f in fields(Duration)}
    wrong = list(_check_keys(key, value, known))
    yield from wrong
    given = {unit: amount for unit, amount in value.items() if amount is not None}
    if not wrong and len(given) != 1:
        hint = f": write null for the other, {key}: {{epochs: null, steps: 1000}}" if given else ""
        yield Problem(key, f"'{key}' needs exactly one of epochs and steps, found {given or 'neither'}{hint}")


def _check_node(key: str, node: Any, runtime_args: Mapping[str, str | None]) -> Iterator[Problem]:
    if not isinstance(node, Mapping):
        yield Problem(key, f"'{key}' must be a mapping, found {node!r}")
        return
    if "_target_" not in node:
        close = difflib.get_close_matches("_target_", list(map(str, node)), n=1)
        hint = f": is '{close[0]}' a misspelling?" if close else ""
        yield Problem(key, f"'{key}' has no '_target_'{hint}")
        return
    try:
        known = signature(str(node["_target_"]))
    except ValueError as error:
        yield Problem(f"{key}._target_", f"'{key}._target_': {error}")
        return
    if node.get("_partial_", False) is not (key in PARTIALS):
        must = "must be true" if key in PARTIALS else "has no place"
        yield Problem(f"{key}._partial_", f"'{key}._partial_' {must} here")
    parameters = {k: v for k, v in node.items() if k not in ("_target_", "_partial_")}
    for name in [k for k in parameters if k in runtime_args]:
        where = runtime_args[name]
        instead = f"set '{where}' at the root instead" if where else "it is not yours to set"
        yield Problem(f"{key}.{name}", f"'{key}.{name}' comes from the run: {instead}")
        del parameters[name]
    yield from _check_keys(key, parameters, {k: p for k, p in known.items() if k not in runtime_args})


def _wanted(path: str, parameter: Parameter) -> str:
    """What a missing key takes; of a group, all of whose files were left out, a file."""
    if path in BAGS:
        return f": {path}=none is without any, {path}=<name> with one"
    if parameter.annotation.startswith("dict["):
        return f": choose one, {path}=<name>"
    return f" ({describe(parameter.annotation)})"


def _check_keys(prefix: str, node: Mapping[str, Any], known: Mapping[str, Parameter]) -> Iterator[Problem]:
    dot = f"{prefix}." if prefix else ""
    for key, value in node.items():
        path = f"{dot}{key}"
        if key not in known:
            message = f"unknown key '{path}'{did_you_mean(str(key), known, dot)}"
            yield Problem(path, message, is_unknown=True)
        elif value != UNSET and (numbers := out_of_range(known[key].annotation, value)):
            yield Problem(path, f"'{path}' must be {numbers}, found {value!r}")
        elif value != UNSET and not fits(known[key].annotation, value):
            what = describe(known[key].annotation, value)
            if known[key].annotation == "Duration":
                what = f"{path}.epochs=<...> or {path}.steps=<...>"
            message = f"'{path}' takes {what}, found {value!r}"
            is_text = isinstance(value, int | float) and fits(known[key].annotation, "text")
            yield Problem(path, message, is_text)
    for key, parameter in known.items():
        if parameter.required and node.get(key, UNSET) == UNSET:
            yield Problem(f"{dot}{key}", f"'{dot}{key}' is missing{_wanted(f'{dot}{key}', parameter)}")
