"""The work of export.py: every format, how to write it, and how to compute with what was written."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mixer_lightning import results
from mixer_lightning.checkpoints.load import (
    PREPROCESSING,
    Description,
    Restored,
    describe,
    facts,
    restore,
    save_flax,
    save_own,
    save_timm,
)
from mixer_lightning.data.transforms import Augment
from mixer_lightning.models.presets import model_node
from mixer_lightning.screen import Screen

TOLERANCE = 1e-3  # of the largest logit; float32 in another order stays a hundred times below
TIMM_NAMES = {
    **{f"mixer_{size}": f"mixer_{size}_224" for size in ("s32", "s16", "b32", "b16", "l32", "l16")},
    "convmixer_1536_20": "convmixer_1536_20",
    "convmixer_768_32": "convmixer_768_32",
    "convmixer_1024_20": "convmixer_1024_20_ks9_p14",
}

Logits = Callable[[Tensor], NDArray[Any]]


class Format(NamedTuple):
    """A kind of file: how to write it, how to compute with what was written, and what a user does with it.

    `reload` gives None and the reason where nothing here can run such a file. `usage` is told the place of the file.
    """

    write: Callable[[Path, Restored], None]
    reload: Callable[[Path, Restored], tuple[Logits | None, str]]
    usage: Callable[[Path, Restored], str]


# ---------------------------------------------------------------------------------------- timm, and our own


def timm_call(restored: Restored) -> tuple[str, dict[str, Any]]:
    """timm's function or class for a model, dotted, and its arguments."""
    found = described(restored)
    tanh = {} if found.family == "ConvMixer" else {"act_layer": partial(nn.GELU, approximate="tanh")}
    name = TIMM_NAMES.get(found.name or "")
    sizes = found.sizes
    if found.family == "ConvMixer":
        activation = restored.model.activation
        if name and activation == model_node(str(found.name))["activation"]:
            return "timm.create_model", {"model_name": name, "num_classes": found.num_classes}
        act_layer = {"gelu": nn.GELU, "relu": nn.ReLU}[str(activation)]
        return "timm.models.convmixer.ConvMixer", {
            **sizes,
            "num_classes": found.num_classes,
            "act_layer": act_layer,
        }
    if name and restored.image_size == 224 and found.parts == 1:
        return "timm.create_model", {"model_name": name, "num_classes": found.num_classes, **tanh}
    hidden_dim = sizes["hidden_dim"]
    wanted = [sizes[key] for key in ("tokens_mlp_dim", "channels_mlp_dim")]
    # timm rounds the product with a ratio down; where that misses, a half more than the number wanted hits it.
    ratios = [
        n / hidden_dim if int(n / hidden_dim * hidden_dim) == n else (n + 0.5) / hidden_dim for n in wanted
    ]
    return "timm.models.mlp_mixer.MlpMixer", {
        "num_classes": found.num_classes,
        "img_size": restored.image_size,
        "patch_size": sizes["patch_size"],
        "num_blocks": sizes["num_blocks"],
        "embed_dim": hidden_dim,
        "mlp_ratio": tuple(ratios),
        **tanh,
    }


def reload_timm(path: Path, restored: Restored) -> tuple[Logits, str]:
    """timm's own model with the written weights."""
    import timm

    function, arguments = timm_call(restored)
    module, _, name = function.rpartition(".")
    model = getattr(importlib.import_module(module), name)(**arguments)
    timm.models.load_checkpoint(model, str(path))  # strict, and without pickled code
    return of_module(model), f"timm {timm.__version__}"


def timm_usage(path: Path, restored: Restored) -> str:
    """The line that loads the file."""
    function, arguments = timm_call(restored)
    words = ", ".join(f"{key}={format_argument(value)}" for key, value in arguments.items())
    if function == "timm.create_model":
        return f'{function}({words}, checkpoint_path="{path}")'
    return f'model = {function}({words}); timm.models.load_checkpoint(model, "{path}")'


def format_argument(value: Any) -> str:
    """A value as Python writes it."""
    if isinstance(value, partial):
        settings = ", ".join(f"{key}={format_argument(word)}" for key, word in value.keywords.items())
        return f"functools.partial({format_argument(value.func)}, {settings})"
    if isinstance(value, type):
        return f"torch.nn.{value.__name__}"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def reload_own(path: Path, restored: Restored) -> tuple[Logits, str]:
    """The model as `restore` makes it of the file alone."""
    return of_module(restore(path).model), "mixer_lightning"


def own_usage(path: Path, restored: Restored) -> str:
    """What takes the file."""
    return f"mixer predict checkpoint={path} images=<files or folder>"


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
    """Writes a model as ONNX; above 2 GB the weights lie beside it in <name>.data."""
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
    return f'onnxruntime.InferenceSession("{path}").run(None, {{"images": images}})[0]'


FORMATS = {
    "timm": Format(lambda path, restored: save_timm(restored.model, path), reload_timm, timm_usage),
    "safetensors": Format(save_own, reload_own, own_usage),
    "onnx": Format(save_onnx, reload_onnx, onnx_usage),
    "npz": Format(lambda path, restored: save_flax(restored.model, path), reload_own, flax_usage),
}

# ------------------------------------------------------------------------------------------------- check


class Difference(NamedTuple):
    """Largest difference between the logits of a model and of its file, and the largest logit."""

    largest: float
    scale: float

    @property
    def is_rounding(self) -> bool:
        """Whether the file computes the same model."""
        return self.largest <= TOLERANCE * self.scale + 1e-6  # False for NaN

    def __str__(self) -> str:
        return f"max |difference| of logits {self.largest:.2g} (logits up to {self.scale:.3g})"


def difference(restored: Restored, logits: Logits) -> Difference:
    """Compares on three random images: another number than any format was traced with."""
    size = restored.image_size
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    expected = of_module(restored.model)(images)
    found = logits(images)
    if found.shape != expected.shape:
        raise RuntimeError(f"logits are {list(found.shape)}, expected {list(expected.shape)}")
    return Difference(float(np.abs(found - expected).max()), float(np.abs(expected).max()))


def described(restored: Restored) -> Description:
    """Sizes of the model."""
    found = describe(restored.model.state_dict())
    assert found is not None
    return found


# ------------------------------------------------------------------------------------------------ writing


def prepare(chosen: argparse.Namespace) -> Restored:
    """The model to write, with all that is known of its images.

    Raises:
        ValueError, OSError: the checkpoint is wrong, or cannot be written in that format.
    """
    restored = restore(
        chosen.checkpoint, model=chosen.model, image_size=chosen.image_size, num_classes=chosen.num_classes
    )
    if chosen.to == "npz" and described(restored).family != "Mixer":
        raise ValueError(f"to=npz is the official layout of Mixers; this is a {described(restored)}")
    augment = Augment(**restored.preprocessing)
    return replace(restored, preprocessing={key: getattr(augment, key) for key in PREPROCESSING})


class Written(NamedTuple):
    """The difference and what computed it, or None and why nothing could; the size of all that was written."""

    difference: Difference | None
    judge: str
    num_bytes: int


def write(restored: Restored, to: str, output: Path) -> Written:
    """Writes `output`, after a check of what it holds.

    Raises:
        RuntimeError: the file does not compute what the model does; it was not kept.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
        path = Path(folder) / output.name
        FORMATS[to].write(path, restored)
        if to != "safetensors":
            text = json.dumps(facts(restored), indent=2, ensure_ascii=False)
            results.sidecar_path(path).write_text(text + "\n", encoding="utf-8")
        logits, judge = FORMATS[to].reload(path, restored)
        found = difference(restored, logits) if logits is not None else None
        if found is not None and not found.is_rounding:
            raise RuntimeError(f"{judge} computes something else from what was written: {found}")
        num_bytes = 0
        for file in sorted(Path(folder).iterdir(), reverse=True):  # <name>.data and .json before <name>
            num_bytes += file.stat().st_size
            file.replace(output.parent / file.name)
    if to == "safetensors":
        results.sidecar_path(output).unlink(missing_ok=True)  # of the file that was here
    return Written(found, judge, num_bytes)


def carry_out(chosen: argparse.Namespace, restored: Restored, screen: Screen) -> int:
    """Write, check, say how to use it; the exit code."""
    screen.say(str(restored.report))
    try:
        written = write(restored, chosen.to, chosen.output)
    except (OSError, RuntimeError) as error:
        screen.say(f"{chosen.output} was not written: {error}")
        return 1
    found, judge, num_bytes = written
    screen.say(f"{described(restored)} written to {chosen.output}, {num_bytes / 1e6:,.1f} MB")
    screen.say(f"{found}, by {judge}" if found is not None else f"not checked: {judge}")
    if restored.report.fresh:
        screen.say("the head is new: its weights are zero, so that the logits compared are all its bias")
    screen.say(f"use: {FORMATS[chosen.to].usage(chosen.output, restored)}")
    screen.say(f"images: {view(restored)}")
    if chosen.to != "safetensors":
        screen.say(f"this, and the names of the classes: {results.sidecar_path(chosen.output)}")
    return 0


def view(restored: Restored) -> str:
    """What becomes of a picture before the model sees it, in words."""
    seen, size = restored.preprocessing, restored.image_size
    sides = {"short_side": "short side", "square": "both sides"}[seen["eval_resize"]]
    return (
        f"{sides} to {int(size / seen['eval_crop'])} px, antialiased {seen['eval_interpolation']}, of which the "
        f"centre: float32 [batch, 3, {size}, {size}], pixels in [0, 1] minus {seen['mean']}, divided by {seen['std']}"
    )
