"""What follows from where a recipe is started: folders as they are seen from everywhere, batches that fit."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mixer_lightning import launcher

PLACES = ("root", "cache")  # keys of data that name a folder


def settled(
    values: Mapping[str, Any], *, stated: Collection[str], choices: Mapping[str, str]
) -> dict[str, Any]:
    """The plain values of a recipe, to be stored as they are: `stated` are the keys that the command line gives."""
    found = dict(values)
    if isinstance(values.get("data"), Mapping):
        found["data"] = _absolute(values["data"])
    # A device_batch of an experiment is the paper's; that of a data set's customary numbers gives way.
    if "device_batch" not in stated and ("batch_size" in stated or "experiment" not in choices):
        fitting = _fitting(values.get("batch_size"), values.get("device_batch"))
        found |= {"device_batch": fitting} if fitting is not None else {}
    return found


def _absolute(data: Mapping[str, Any]) -> dict[str, Any]:
    """Relative folders as they are seen from here: a run directory is used from elsewhere too."""
    ours = str(data.get("_target_", "")).startswith("mixer_lightning.")
    found = dict(data)
    for key in PLACES:
        text = data.get(key)
        is_path = isinstance(text, str) and text and not re.match(r"~|pipe:|[A-Za-z][\w+.-]*:", text)
        if is_path and (ours or Path(str(text)).exists()):
            found[key] = str(Path(str(text)).absolute())
    return found


def _fitting(batch_size: object, device_batch: object) -> int | None:
    """The size nearest to `device_batch`, and no larger, that a process's share of a batch divides into.

    None where it divides, or where that would be less than a quarter.
    """
    if (
        not isinstance(batch_size, int)
        or not isinstance(device_batch, int)
        or min(batch_size, device_batch) < 1
    ):
        return None
    try:
        world_size = (launcher.launched() or launcher.ALONE).world_size
    except ValueError:  # said when the machine is built
        return None
    share, rest = divmod(batch_size, world_size)
    if rest or share == 0 or share % device_batch == 0:
        return None
    smallest = min(share, max(1, device_batch // 4))
    sizes = [size for size in range(smallest, min(share, device_batch) + 1) if share % size == 0]
    return max(sizes, default=None)
