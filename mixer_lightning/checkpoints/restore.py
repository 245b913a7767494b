"""The model that a checkpoint holds, built from the file alone where it says enough."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mixer_lightning.checkpoints.describe import Description, describe
from mixer_lightning.checkpoints.load import Report, load
from mixer_lightning.checkpoints.read import Checkpoint, read
from mixer_lightning.checkpoints.recognise import num_classes_of, recognised
from mixer_lightning.models.presets import (
    build_model,
    default_image_size,
    list_models,
    model_node,
    refuse_too_large,
)


@dataclass(frozen=True)
class Restored:
    """A model with its weights, in evaluation mode, and what is known of it. `name` is a file of conf/model.

    `classes` are the names of its outputs, if they are known; `preprocessing` as in Checkpoint; `parameters` are those
    that differ from the file's, of a model whose tensors do not tell them.
    """

    model: nn.Module
    name: str | None
    image_size: int
    classes: list[str] | None
    preprocessing: dict[str, Any]
    report: Report
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Outputs of the model."""
        return int(self.model.num_classes)  # type: ignore[arg-type]

    def __str__(self) -> str:
        found = describe(self.model.state_dict())
        return str(found or f"{self.name} at {self.image_size}, {self.num_classes} classes")


def restore(
    checkpoint: str | Path | Checkpoint,
    *,
    model: str | None = None,
    image_size: int | None = None,
    num_classes: int | None = None,
) -> Restored:
    """The model that a checkpoint holds.

    Args:
        checkpoint: what `read` takes, or gave.
        model: one of `list_models()`, where the file does not say enough.
        image_size: side in pixels; None: the file's, or what the model is made for.
        num_classes: None: the file's. Another number makes a new head (see `load`).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is unreadable, does not tell its model or size, or holds another than was named.
    """
    checkpoint = checkpoint if isinstance(checkpoint, Checkpoint) else read(checkpoint)
    checkpoint = recognised(checkpoint, model=model)
    there = checkpoint.model
    if model is None and there is None and checkpoint.model_name in list_models():
        model = checkpoint.model_name
    if num_classes is None:
        num_classes = _num_classes(checkpoint, model)
    if image_size is None:
        image_size = there.image_size if there is not None else checkpoint.image_size
    parameters: dict[str, Any] = {}
    if model is not None:
        image_size = default_image_size(model) if image_size is None else image_size
        make = partial(build_model, model, num_classes=num_classes, image_size=image_size)
        if there is None and model == checkpoint.model_name:
            node = model_node(model)
            parameters = {k: v for k, v in checkpoint.parameters.items() if k in node and v != node[k]}
            make = partial(make, overrides=parameters)
        if parameters:
            _refuse_others_sizes(checkpoint, parameters, make)
        made = make()
    elif there is None:
        raise ValueError(
            f"{checkpoint.path} does not tell what model it holds: say model=<name>, one that `mixer models` lists"
        )
    else:
        if image_size is None:
            if there.name is None:
                raise ValueError(
                    f"{checkpoint.path} does not tell the size of its images: say image_size=<pixels>"
                )
            image_size = default_image_size(there.name)
        made = _built(checkpoint.path, there, num_classes=num_classes, image_size=image_size)
    report = load(made, checkpoint)
    classes = checkpoint.classes if not report.fresh else None
    return Restored(
        model=made.eval(),
        name=model or (there.name if there is not None else None),
        image_size=image_size,
        classes=classes if classes is not None and len(classes) == num_classes else None,
        preprocessing=checkpoint.preprocessing,
        report=report,
        parameters=parameters,
    )


def _refuse_others_sizes(
    checkpoint: Checkpoint, parameters: Mapping[str, Any], make: Callable[[], nn.Module]
) -> None:
    """ValueError where stated parameters are of a larger model than the tensors, before there is memory for it."""
    sizes = [side for tensor in checkpoint.tensors.values() for side in tensor.shape]
    largest = max([len(checkpoint.tensors), *sizes])
    for key, value in parameters.items():
        numbers = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(each, int | float) and each > largest for each in numbers):
            raise ValueError(f"{checkpoint.path}: {key}={value} is not of the model that its tensors are of")
    with torch.device("meta"):
        expected = sum(tensor.numel() for tensor in make().parameters())
    if expected > 2 * sum(tensor.numel() for tensor in checkpoint.tensors.values()):
        raise ValueError(
            f"{checkpoint.path}: the parameters that it states make a larger model than its tensors"
        )


def _num_classes(checkpoint: Checkpoint, model: str | None) -> int:
    """As many as the file's head has outputs, or names for them; 1000 where it tells neither."""
    if checkpoint.model is not None:
        found: int | None = checkpoint.model.num_classes
    elif checkpoint.classes or model is None:
        found = len(checkpoint.classes or []) or None
    else:
        found = num_classes_of(model, checkpoint)
    if found == 0:
        raise ValueError(f"{checkpoint.path} has no head: say num_classes=<number> for a new one")
    return 1000 if found is None else found


def _built(path: Path, there: Description, *, num_classes: int, image_size: int) -> nn.Module:
    """A model of a description's family and sizes. Nothing else in a file decides what is built."""
    parameters: dict[str, Any] = {**there.sizes}
    if there.family.has_activation:
        named = model_node(there.name).get("activation") if there.name else None
        parameters["activation"] = there.activation or named
        if parameters["activation"] is None:
            raise ValueError(f"{path} does not tell the activation of its {there}: say model=<name>")

    def make() -> nn.Module:
        return there.family.build(parameters, num_classes, image_size)

    refuse_too_large(make, num_classes=num_classes, image_size=image_size)
    return make()
