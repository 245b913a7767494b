"""What a checkpoint says is data, whoever made it: names, numbers and paths, nothing that runs or reaches out.

A run directory, a file of weights or the JSON beside it may come from a stranger. Commands (`pipe:`), URLs,
interpolations and targets are taken from the command line and from the user's own config files alone.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mixer_lightning.config.from_checkpoint import Known, Overrides, Stated
from mixer_lightning.files import CONF

#: A scheme at the start, or anywhere a chain of them or one that braces may hide: pipe:x, a::s3://x, p{ipe:x,}.
ADDRESS = re.compile(r"^\s*[A-Za-z][\w+.-]*:|://|::|\{.*:|:.*\}", re.DOTALL)
MAX_DEPTH = 8  # of a value: lists of lists of ...
MAX_ITEMS = 10_000
SHOWN_CHARACTERS = 80
#: Where this machine keeps copies of remote shards, and deletes them: not for another's recipe to say.
OF_THIS_MACHINE = ("data.cache", "data.cache_bytes")


def only_data(
    overrides: Overrides, stated: Stated, known: Known, folders: Sequence[Path] = (CONF,)
) -> Overrides:
    """What a checkpoint implies, as far as it is for a checkpoint to say.

    `stated` is the command line, which goes before it; `known` are the choices of each group, and `folders` those of
    config files.

    Raises:
        ValueError: it holds what only the command line or one's own config files may say.
    """
    checkpoint = stated.get("checkpoint", ["the checkpoint"])[0]
    for group, choice in overrides.choices.items():
        if choice not in known.get(group, ()):
            raise ValueError(
                f"{checkpoint} names the {group} {_shown(choice)}, which is no choice of {group}"
            )
    for key, value in overrides.values.items():
        group, _, name = key.partition(".")
        own = _own(group, overrides.choices.get(group), folders)
        if key in stated or (name in own and own[name] == value):
            continue
        if name == "_target_":
            if value not in _targets(group, folders):
                raise ValueError(
                    f"{checkpoint} names the code {_shown(value)} as its {group}: only targets in files of "
                    f"conf/{group}/ are built. Add such a file of your own (--config-dir) if you trust it"
                )
            continue
        if found := next(_foreign(key, value), None):
            what, item = found
            raise ValueError(
                f"{checkpoint} says {key}={_shown(item)}: {what} is taken from the command line alone. State it "
                f"there if you trust it: {_argument(key, value)}"
            )
    return Overrides(
        overrides.choices,
        {key: value for key, value in overrides.values.items() if key not in OF_THIS_MACHINE},
    )


def _foreign(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What is in a value that no checkpoint may say: what that is, and the item itself."""
    if not all(part.isidentifier() and not part.startswith("_") for part in key.split(".")):
        yield "a key of that form", value
    for number, (depth, item) in enumerate(_items(value)):
        if depth > MAX_DEPTH or number > MAX_ITEMS:
            yield "a value of that size", item
        elif not isinstance(item, str | int | float | bool | None | list | dict):
            yield f"a {type(item).__name__}", item
        elif isinstance(item, str) and "${" in item:
            yield "an interpolation (${...})", item
        elif isinstance(item, str) and key.startswith("data.") and ADDRESS.search(item):
            yield "a command or URL", item


def _items(value: Any) -> Iterator[tuple[int, Any]]:
    """A value and all that is in it, each with its depth; lazily, since YAML's aliases can make it endless."""
    waiting = [(0, value)]
    while waiting:
        depth, item = waiting.pop()
        yield depth, item
        inside = [*item.keys(), *item.values()] if isinstance(item, Mapping) else item
        if isinstance(inside, list):
            waiting += [(depth + 1, each) for each in inside[:MAX_ITEMS]]


def _own(group: str, choice: str | None, folders: Sequence[Path]) -> Mapping[str, Any]:
    """What the user's own file of a choice says."""
    for folder in folders:
        if choice is not None and (path := folder / group / f"{choice}.yaml").is_file():
            node = yaml.safe_load(path.read_text(encoding="utf-8"))
            return node if isinstance(node, dict) else {}
    return {}


def _targets(group: str, folders: Sequence[Path]) -> set[Any]:
    """The targets of a group's files."""
    nodes = (
        yaml.safe_load(path.read_text(encoding="utf-8"))
        for folder in folders
        for path in (folder / group).glob("*.yaml")
    )
    return {node["_target_"] for node in nodes if isinstance(node, dict) and "_target_" in node}


def _shown(value: Any) -> str:
    """A value in a message: one line, and not all of a long one."""
    if isinstance(value, list | dict):  # perhaps an endless one
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def _argument(key: str, value: Any) -> str:
    """An argument of the command line, as a shell takes it, that says what a value says."""
    return shlex.quote(f"{key}={value}") if isinstance(value, str) and value.isprintable() else f"{key}=..."
