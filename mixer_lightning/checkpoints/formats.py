"""Formats of an export: how each is written, how to compute with what was written, and the line that uses it."""

from __future__ import annotations

import importlib
import importlib.util
import json
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mixer_lightning.checkpoints.describe import describe
from mixer_lightning.checkpoints.families import TimmCall
from mixer_lightning.checkpoints.restore import Restored, restore
from mixer_lightning.checkpoints.save import save_flax, save_own, save_timm
from mixer_lightning.models.presets import model_node
from mixer_lightning.targets import locate

Logits = Callable[[Tensor], NDArray[Any]]


class Format(NamedTuple):
    """A kind of file: how to write it, how to compute with what was written, and what a user does with it.

    `reload` gives None and the reason where nothing here can run such a file. `usage` is given the place of the file.
    """

    write: Callable[[Path, Restored], None]
    reload: Callable[[Path, Restored], tuple[Logits | None, str]]
    usage: Callable[[Path, Restored], str]


# ---------------------------------------------------------------------------------------- timm, and our own


def timm_call(restored: Restored) -> TimmCall:
    """timm's function or class for a model, dotted, and its arguments."""
    found = describe(restored.model.state_dict())
    if found is None:
        arguments: Any = restored.model.timm_arguments
        return TimmCall("timm.create_model", dict(arguments))
    family, activation = found.family, getattr(restored.model, "activation", None)
    head: dict[str, Any] = {"num_classes": found.num_classes}
    name = family.timm_names.get(found.name or "")
    if (
        name is not None
        and found.parts == 1
        and family.timm_image_size in (None, restored.image_size)
        and activation == model_node(str(found.name)).get("activation")
    ):
        return TimmCall("timm.create_model", {"model_name": name, **head, **family.timm_options()})
    function, arguments = family.timm_class(found.sizes, restored.image_size, activation)
    return TimmCall(function, {**head, **arguments, **family.timm_options()})


def reload_timm(path: Path, restored: Restored) -> tuple[Logits, str]:
    """timm's own model with the written weights."""
    import timm

    function, arguments = timm_call(restored)
    model = locate(function)(**arguments)
    timm.models.load_checkpoint(model, str(path))  # strict, and without pickled code
    return of_module(model), f"timm {timm.__version__}"


def timm_usage(path: Path, restored: Restored) -> str:
    """The line that loads the file."""
    function, arguments = timm_call(restored)
    written = ", ".join(f"{key}={format_argument(value)}" for key, value in arguments.items())
    if function == "timm.create_model":
        return f"{function}({written}, checkpoint_path={format_argument(str(path))})"
    return f"model = {function}({written}); timm.models.load_checkpoint(model, {format_argument(str(path))})"


def format_argument(value: Any) -> str:
    """A value as Python writes it."""
    if isinstance(value, partial):
        settings = ", ".join(f"{key}={format_argument(setting)}" for key, setting in value.keywords.items())
        return f"functools.partial({format_argument(value.func)}, {settings})"
    if isinstance(value, type):
        module = "torch.nn" if value.__module__.startswith("torch.nn.") else value.__module__
        return f"{module}.{value.__name__}"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def reload_own(path: Path, restored: Restored) -> tuple[Logits, str]:
    """The model as `restore` makes it from the file alone."""
    return of_module(restore(path).model), "mixer_lightning"


def own_usage(path: Path, restored: Restored) -> str:
    """What takes the file."""
    return f"mixer predict {shlex.quote(f'checkpoint={path}')} images=<files or folder>"


def flax_usage(path: Path, restored: Restored) -> str:
    """What takes the file."""
    return f"{path} has the layout of gs://mixer_models, which vision_transformer and big_vision load"


def of_module(model: nn.Module) -> Logits:
    """Logits of a PyTorch model."""
    model.eval()

    @torch.no_grad()
    def logits(images: Tensor) -> NDArray[Any]:
        return np.asarray(model(images).numpy())

    return logits


# -------------------------------------------------------------------------------------------------- ONNX


def save_onnx(path: Path, restored: Restored) -> None:
    """Writes a model as ONNX; above 2 GB the weights go into <name>.data next to it."""
    size = restored.image_size
    batch = torch.export.Dim("batch")
    with torch.no_grad():  # also keeps the gradients of kernels/depthwise.py out of the graph
        program = torch.onnx.export(
            restored.model,
            (torch.zeros(2, 3, size, size),),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: batch},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(path)


def reload_onnx(path: Path, restored: Restored) -> tuple[Logits | None, str]:
    """ONNX Runtime where it is installed, else the slow evaluator that comes with onnx."""
    if importlib.util.find_spec("onnxruntime"):
        runtime = importlib.import_module("onnxruntime")
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        run, name = session.run, f"ONNX Runtime {runtime.__version__}"
    elif importlib.util.find_spec("onnx"):
        reference = importlib.import_module("onnx.reference")
        run, name = reference.ReferenceEvaluator(str(path)).run, "the reference evaluator of onnx"
    else:
        return None, "neither onnxruntime nor onnx is installed: pip install onnxruntime"

    def logits(images: Tensor) -> NDArray[Any]:
        return np.asarray(run(None, {"images": images.numpy()})[0])

    return logits, name


def onnx_usage(path: Path, restored: Restored) -> str:
    """How to compute with the file."""
    return f'onnxruntime.InferenceSession({format_argument(str(path))}).run(None, {{"images": images}})[0]'


FORMATS = {
    "timm": Format(lambda path, restored: save_timm(restored.model, path), reload_timm, timm_usage),
    "safetensors": Format(save_own, reload_own, own_usage),
    "onnx": Format(save_onnx, reload_onnx, onnx_usage),
    "npz": Format(lambda path, restored: save_flax(restored.model, path), reload_own, flax_usage),
}
