"""Options that `mixer prepare` takes by itself, and the command that writes a set of shards (again)."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Any, NamedTuple


class Defaults(NamedTuple):
    """What `prepare` does where its command line says nothing else."""

    split: str = "train"
    verify: bool = True
    max_distance: int = 0
    shard_bytes: int = 10**9
    seed: int = 0
    max_bad: float = 0.01  # of all images
    resized_quality: int = 90  # of the JPEGs that resized images become


DEFAULTS = Defaults()

#: Recorded in dataset.json, but no option of its own: they follow from others, or change no shard.
DERIVED = ("resampling", "cmyk_quality", "overrides", "write_hashes")

#: Files of conf/data that read shards which `prepare` makes under the same name.
SHARDS_BY_NAME = ("imagenet21k", "jft300m")


def without_root(overrides: Iterable[str]) -> list[str]:
    """Overrides of `prepare` except where its source lies, which says nothing about the set."""
    return [each for each in overrides if not each.startswith("data.root=")]


def prepare_command(name: str, options: dict[str, Any]) -> str:
    """The command that writes a set with these options of dataset.json; without options, a set of this name.

    Where nothing says what such a set is made of, class folders stand for it. Paths are left to be filled in.
    """
    data = str(options.get("data", name if name in SHARDS_BY_NAME else "folder"))
    source = "<archives>" if data.startswith("imagenet") else "<source>"
    settings = {"data": data, "source": source, "output": "<path>"}
    overrides = without_root(map(str, options.get("overrides") or []))
    defaults = DEFAULTS._asdict()
    for key, value in options.items():
        if key in (*settings, "source", *DERIVED) or value is None or value == defaults.get(key):
            continue
        if key == "shard_bytes" and options.get("shards") is not None:  # which decides
            continue
        if str(value).startswith("sha256 "):
            settings[key] = "<file>"
        elif isinstance(value, list):
            settings[key] = ",".join(map(str, value))
        else:
            settings[key] = str(value).lower() if isinstance(value, bool) else str(value)
    arguments = [
        f"{key}={value if value[:1] == '<' else shlex.quote(value)}" for key, value in settings.items()
    ]
    return " ".join(["mixer prepare", *arguments, *map(shlex.quote, overrides)])
