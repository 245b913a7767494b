"""A run in a line, from its result: what was trained, for how long, and what it reached."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixer_lightning import results
from mixer_lightning.screen import format_metric


def describe_run(record: Mapping[str, Any]) -> str:
    """Model with its parameters, steps, images and the metric by which runs are compared; `record` is a result.json."""
    recipe = record.get("recipe") or {}
    name = str((recipe.get("choices") or {}).get("model", ""))
    node = recipe.get("model")
    parameters = node.items() if isinstance(node, Mapping) else ()
    named = ", ".join(f"{key} {value}" for key, value in parameters if key != "_target_")
    parts = [" with ".join(part for part in (name, named) if part)]
    if "steps" in record:
        parts.append(f"{record['steps']:,} steps of {recipe.get('batch_size', '?')} images")
    train = (record.get("images") or {}).get("train")
    if isinstance(train, int):
        parts.append(f"{train:,} training images")
    metric = results.main_metric(record["metrics"])
    if metric is not None:
        parts.append(f"{metric} {format_metric(metric, record['metrics'][metric])}")
    return "; ".join(part for part in parts if part)


def describe_checkpoint(path: Path) -> tuple[str, str]:
    """The description and the command of the run that weights are of; empty where neither is known."""
    try:
        record = (
            results.read_result(path if path.is_dir() else path.parent, whole=True) if path.exists() else None
        )
    except ValueError:  # damaged: that is not what is asked for here
        record = None
    return ("", "") if record is None else (describe_run(record), record.get("command", ""))
