"""How the `_target_` of a YAML file becomes an object: the one place that turns dotted paths into Python."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Mapping
from typing import Any


def locate(target: str) -> Any:
    """The object that a dotted path names, imported.

    Raises:
        ImportError, AttributeError: there is none.
    """
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def takes(target: str, parameter: str) -> bool:
    """Whether what a dotted path names has a parameter of that name."""
    return parameter in inspect.signature(locate(target)).parameters


def build(node: Mapping[str, Any], **runtime_args: Any) -> Any:
    """Call the `_target_` of a node with its parameters and those of the run; `_partial_: true` gives the partial."""
    parameters = {key: value for key, value in node.items() if key not in ("_target_", "_partial_")}
    target = locate(node["_target_"])
    if node.get("_partial_", False):
        return functools.partial(target, **parameters, **runtime_args)
    return target(**parameters, **runtime_args)
