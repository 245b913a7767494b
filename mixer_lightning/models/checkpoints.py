"""Weights from and to files: the official Flax and PyTorch releases, timm, and this project's own runs.

`read` takes a file apart without knowing the model, `load` copies it into one, `save_timm` and `save_flax` write.
Whatever the file, tensors have timm's names, which are those of our models. Nothing that a file holds is ever executed:
pickled objects are refused.

The GELU of a Mixer is no tensor: Google's weights were trained with its tanh form, which our Mixer computes; timm
computes the exact form for every Mixer (logits differ by about 1e-4 of their size).
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mixer_lightning.models import list_models, model_node

TORCH_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".tar")
SUFFIXES = (".npz", ".safetensors", *TORCH_SUFFIXES)

# ------------------------------------------------------------------------------------------ what a file is


@dataclass(frozen=True)
class Description:
    """What the shapes of its tensors say of a model. `sizes` are parameters of Mixer or ConvMixer."""

    family: str  # "Mixer" or "ConvMixer"
    sizes: dict[str, int]
    image_size: int | None  # None: the weights fit any size
    num_classes: int  # 0: no head
    activation: str | None = None  # of a ConvMixer; None: unknown, since the tensors do not tell

    @property
    def name(self) -> str | None:
        """The file of conf/model with these sizes."""
        for name in list_models():
            node = model_node(name)
            if self.sizes.keys() <= node.keys() and all(node[key] == self.sizes[key] for key in self.sizes):
                return name
        return None

    def __str__(self) -> str:
        sizes = ", ".join(f"{key} {size}" for key, size in self.sizes.items())
        at = f" at {self.image_size}" if self.image_size else ""
        classes = f"{self.num_classes} classes" if self.num_classes else "no head"
        return f"{self.name or f'{self.family} ({sizes})'}{at}, {classes}"


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights: its kind in words, its tensors under timm's names, and what is known of the model.

    `model` is None where the tensors are neither a Mixer's nor a ConvMixer's. `classes` and `recipe` come with the
    checkpoints of our own runs.
    """

    path: Path
    kind: str
    tensors: dict[str, Tensor]
    model: Description | None
    classes: list[str] | None = None
    recipe: dict[str, Any] | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.path.name} ({self.kind}: {self.model or 'neither a Mixer nor a ConvMixer'})"


def describe(tensors: Mapping[str, Tensor]) -> Description | None:
    """Recognises a Mixer or a ConvMixer by the names and shapes of its tensors; None for anything else."""
    try:
        num_classes = tensors["head.weight"].shape[0] if "head.weight" in tensors else 0
        depth = len({key.split(".")[1] for key in tensors if key.startswith("blocks.")})
        if "stem.proj.weight" in tensors:
            dim, _, _, patch = tensors["stem.proj.weight"].shape
            tokens_dim, num_tokens = tensors["blocks.0.mlp_tokens.fc1.weight"].shape
            side = math.isqrt(num_tokens)
            sizes = {
                "patch_size": patch,
                "num_blocks": depth,
                "hidden_dim": dim,
                "tokens_mlp_dim": tokens_dim,
                "channels_mlp_dim": tensors["blocks.0.mlp_channels.fc1.weight"].shape[0],
            }
            image_size = side * patch if side**2 == num_tokens else None
            return Description("Mixer", sizes, image_size, num_classes)
        if "stem.0.weight" in tensors:
            dim, _, _, patch = tensors["stem.0.weight"].shape
            kernel = tensors["blocks.0.0.fn.0.weight"].shape[-1]
            sizes = {"dim": dim, "depth": depth, "patch_size": patch, "kernel_size": kernel}
            return Description("ConvMixer", sizes, None, num_classes)
    except (KeyError, ValueError, IndexError):  # some tensors of that name, not those of such a model
        pass
    return None


# ------------------------------------------------------------------------------------------------ reading


def read(path: str | Path) -> Checkpoint:
    """Reads a file of weights on the CPU, whatever model it holds.

    Takes: official Mixer .npz (google-research/vision_transformer; also the older layout that
    google-research/big_vision converts), state dicts of timm and of locuslab/convmixer (also inside training
    checkpoints and with the prefixes of DDP and torch.compile), checkpoints of our own runs (their averaged weights
    where there are some), as .safetensors or as torch files (.pth, .pth.tar, .pt, .ckpt, .bin).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not what its name says, holds pickled objects, or holds no weights.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint file {path}")
    if path.suffix == ".npz":
        return _from_flax(path, _read_npz(path))
    if path.suffix == ".safetensors":
        return _from_state_dict(path, _read_safetensors(path), {})
    if path.suffix in TORCH_SUFFIXES:
        content = _read_torch(path)
        return _from_state_dict(path, _find_state_dict(path, content), content)
    raise ValueError(f"{path} is no known kind of checkpoint: its name must end in {', '.join(SUFFIXES)}")


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as file:  # np.load would hide a missing zip end behind talk of pickles
            content = np.load(file, allow_pickle=False)
            arrays = {key: content[key] for key in content.files}
    except Exception as error:  # numpy, zipfile and zlib have a dozen ways to fail on a broken file
        if "Object arrays" in str(error):
            raise ValueError(_pickled(path, "Python objects")) from error
        raise ValueError(_broken(path, "NumPy .npz archive")) from error
    return {key: _from_bfloat16(array) if array.dtype == "V2" else array for key, array in arrays.items()}


def _from_bfloat16(array: NDArray[Any]) -> NDArray[Any]:
    """NumPy stores bfloat16 as two bytes without a type: the upper half of a float32."""
    return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    try:
        return dict(load_file(path, device="cpu"))
    except Exception as error:  # its own SafetensorError, OSError, or a KeyError for an unknown dtype
        raise ValueError(_broken(path, "safetensors file")) from error


def _read_torch(path: Path) -> dict[str, Any]:
    try:
        # timm's trainer, which the ConvMixer authors used, keeps its options in a Namespace: harmless.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken pickle can fail with any exception
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))  # a class or function that the pickle asks for
        if refused:
            raise ValueError(_pickled(path, refused[1])) from error
        raise ValueError(_broken(path, "torch file")) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dictionary of weights")
    return {str(key): value for key, value in content.items()}


def _broken(path: Path, what: str) -> str:
    return f"{path} is no readable {what}: {_looks_like(path) or 'it is damaged or cut short; copy it again'}"


def _pickled(path: Path, what: str) -> str:
    return (
        f"{path} holds pickled objects ({what}), and to load those would let the file run code. "
        "Save the weights alone where you trust it: torch.save(model.state_dict(), path)"
    )


def _looks_like(path: Path) -> str | None:
    """What the first bytes of a broken file betray about how it came here."""
    with path.open("rb") as file:
        start = file.read(256)
    text = start.lstrip().lower()
    if not text:
        return "it is empty"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page; the download needs another address or a login"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; fetch the file itself with git lfs pull"
    torch_magic = b"\x80\x02\x8a\x0a"  # torch before 1.6 wrote pickles too, of a number first
    if start.startswith(b"\x80") and not start.startswith(torch_magic):
        return "it is a plain pickle, and to load one would let it run code"
    return None


def _find_state_dict(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """The weights among what a training checkpoint holds: averaged ones first."""
    if "recipe" in content and isinstance(content.get("state_dict"), Mapping):  # one of our own runs
        state = content["state_dict"]
        own = {key.removeprefix("model."): state[key] for key in state if key.startswith("model.")}
        return {**own, **(content.get("ema") or {})}
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(content.get(key), Mapping) and content[key]:
            return dict(content[key])
    if not any(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} holds no weights: its keys are {_some(list(content))}")
    return dict(content)


def _from_state_dict(path: Path, state: Mapping[str, Any], content: Mapping[str, Any]) -> Checkpoint:
    tensors = {_strip(key): value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no weights")
    kind = "timm's names"
    if "recipe" in content:
        kind = "run of this project"
    elif "0.weight" in tensors and any(key.startswith("3.0.fn.") for key in tensors):
        kind = "locuslab's ConvMixer"
        tensors = _from_sequential(tensors)
    model = describe(tensors)
    recipe = content["recipe"] if isinstance(content.get("recipe"), dict) else None
    if recipe is not None and model is not None and model.family == "ConvMixer":  # more than the tensors tell
        activation = recipe.get("model", {}).get("activation", "gelu")
        model = replace(model, image_size=recipe.get("image_size"), activation=activation)
    classes = list(content["classes"]) if isinstance(content.get("classes"), list) else None
    return Checkpoint(path, kind, tensors, model, classes, recipe)


def _strip(key: str) -> str:
    """Takes off what DistributedDataParallel ("module.") and torch.compile ("_orig_mod.") put before a name."""
    return re.sub(r"^(module\.|_orig_mod\.)+", "", key)


def _from_sequential(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """locuslab/convmixer counts its layers: stem 0 to 2, blocks 3 to 2+d, pooling, flattening, head 5+d."""
    last = max(int(key.split(".")[0]) for key in tensors if key.split(".")[0].isdigit())
    renamed = {}
    for key, tensor in tensors.items():
        index, _, rest = key.partition(".")
        if not index.isdigit():
            renamed[key] = tensor
        elif int(index) <= 2:
            renamed[f"stem.{key}"] = tensor
        elif int(index) == last:
            renamed[f"head.{rest}"] = tensor
        else:
            renamed[f"blocks.{int(index) - 3}.{rest}"] = tensor
    return renamed


# --------------------------------------------------------------------------------------- the Flax layout

# vit_jax/models_mixer.py names its modules so; a kernel is stored as [in, out], a stem kernel as [P, P, 3, C].
FLAX_TO_TIMM = {
    "stem": "stem.proj",
    "LayerNorm_0": "norm1",
    "token_mixing/Dense_0": "mlp_tokens.fc1",
    "token_mixing/Dense_1": "mlp_tokens.fc2",
    "LayerNorm_1": "norm2",
    "channel_mixing/Dense_0": "mlp_channels.fc1",
    "channel_mixing/Dense_1": "mlp_channels.fc2",
    "pre_head_layer_norm": "norm",
    "head": "head",
}
TIMM_TO_FLAX = {timm: flax for flax, timm in FLAX_TO_TIMM.items()}


def _from_flax(path: Path, arrays: Mapping[str, NDArray[Any]]) -> Checkpoint:
    tensors = {}
    for key, array in arrays.items():
        key = re.sub(r"^(params|opt/target)/", "", key)
        try:
            name, array = _timm_name(*_from_older(key, array))
        except (KeyError, ValueError):
            raise ValueError(
                f"{path} is no Mixer of the official code: it holds {_some(list(arrays))}"
            ) from None
        tensors[name] = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    if not tensors:
        raise ValueError(f"{path} holds no weights")
    older = any("Mixer/" in key for key in arrays)  # the name of its root
    kind = "official Flax Mixer, older layout" if older else "official Flax Mixer"
    return Checkpoint(path, kind, tensors, describe(tensors))


def _from_older(key: str, array: NDArray[Any]) -> tuple[str, NDArray[Any]]:
    """The layout before the public code, as big_vision/models/mlp_mixer.py converts it; others pass unchanged."""
    key = key.replace("Mixer/encoder_norm/", "pre_head_layer_norm/").replace("Mixer/embedding/", "stem/")
    key = re.sub(r"Mixer/encoderblock_(\d+)/", r"MixerBlock_\1/", key)
    mlp = re.fullmatch(r"(.*)/(token|channel)_mixing_phase_0/(kernel|bias)([12])", key)
    if not mlp:
        return key, array
    block, kind, leaf, number = mlp.groups()
    return f"{block}/{kind}_mixing/Dense_{int(number) - 1}/{leaf}", array.squeeze()


def _timm_name(key: str, array: NDArray[Any]) -> tuple[str, NDArray[Any]]:
    """Flax's name and array -> timm's; KeyError or ValueError for a name that no Mixer has."""
    block = re.match(r"MixerBlock_(\d+)/", key)
    module, leaf = (key[block.end() :] if block else key).rsplit("/", 1)
    prefix = f"blocks.{block[1]}." if block else ""
    name = f"{prefix}{FLAX_TO_TIMM[module]}.{ {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias'}[leaf] }"
    return name, array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def _flax_name(name: str, tensor: Tensor) -> tuple[str, NDArray[Any]]:
    """timm's name and tensor -> Flax's."""
    block = re.match(r"blocks\.(\d+)\.", name)
    module, leaf = (name[block.end() :] if block else name).rsplit(".", 1)
    prefix = f"MixerBlock_{block[1]}/" if block else ""
    if leaf == "weight":
        leaf = "scale" if tensor.ndim == 1 else "kernel"
    array = tensor.detach().float().cpu().numpy()
    array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    return f"{prefix}{TIMM_TO_FLAX[module]}/{leaf}", np.ascontiguousarray(array)


# ------------------------------------------------------------------------------------------------ loading


@dataclass(frozen=True)
class Report:
    """What `load` did: the checkpoint, the tensors copied, and those that stay as they were initialised."""

    checkpoint: Checkpoint
    loaded: list[str]
    fresh: list[str]
    num_classes: int

    def __str__(self) -> str:
        text = f"{len(self.loaded)} tensors from {self.checkpoint}"
        if not self.fresh:
            return text
        there = self.checkpoint.model.num_classes if self.checkpoint.model else 0
        why = f"{there} classes there, {self.num_classes} here" if there else "the file has none"
        return f"{text}; the head stays fresh: {why}"


def load(model: nn.Module, path: str | Path) -> Report:
    """Copies a checkpoint into a model, all of it or, on an error, nothing.

    A head for another number of classes, or none, leaves the model's own as it is: see `Report.fresh`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is unreadable (see `read`) or its tensors are not this model's.
    """
    checkpoint = read(path)
    found = dict(checkpoint.tensors)
    expected = model.state_dict()
    fresh = []
    heads = [key for key in expected if key.startswith("head.")]
    if any(key not in found or found[key].shape[:1] != expected[key].shape[:1] for key in heads):
        fresh = heads
        for key in heads:
            found.pop(key, None)
    wrong = []
    for key, tensor in expected.items():
        if key in fresh or (key not in found and key.endswith("num_batches_tracked")):
            continue
        if key not in found:
            wrong.append(f"{key} is missing, expected {_shape(tensor)}")
        elif found[key].shape != tensor.shape:
            wrong.append(f"{key} is {_shape(found[key])}, expected {_shape(tensor)}")
    wrong += [f"{key} {_shape(found[key])} has no place" for key in found if key not in expected]
    activation = checkpoint.model.activation if checkpoint.model else None
    if activation is not None and activation != getattr(model, "activation", activation):
        wrong.append(f"it was trained with {activation}, the model has {getattr(model, 'activation', None)}")
    if wrong:
        raise ValueError(_misfit(model, checkpoint, wrong))
    with torch.no_grad():
        for key in found:
            expected[key].copy_(found[key])  # shares memory with the model
    return Report(checkpoint, list(found), fresh, getattr(model, "num_classes", 0))


def _misfit(model: nn.Module, checkpoint: Checkpoint, wrong: list[str]) -> str:
    here = describe(model.state_dict())
    text = f"{checkpoint.path} does not fit {here or type(model).__name__}: {_some(wrong, separator='; ')}."
    if checkpoint.model is None:
        return f"{text} This file holds neither a Mixer nor a ConvMixer."
    text += f" This file holds a {checkpoint.model}"
    name, size = checkpoint.model.name, checkpoint.model.image_size
    if name is None:
        return f"{text}."
    return f"{text}: use model={name}{f' image_size={size}' if size else ''}."


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _some(items: list[str], *, separator: str = ", ", limit: int = 4) -> str:
    more = f"{separator}and {len(items) - limit} more" if len(items) > limit else ""
    return separator.join(items[:limit]) + more


# ------------------------------------------------------------------------------------------------- saving


def save_timm(model: nn.Module, path: str | Path) -> None:
    """Writes a model's state dict, which has timm's names, as .safetensors, .pth or .pt (else ValueError)."""
    path = Path(path)
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(tensors, path)
    elif path.suffix in (".pth", ".pt"):
        torch.save(tensors, path)
    else:
        raise ValueError(
            f"timm's weights are written to a file ending in .safetensors, .pth or .pt, not to {path}"
        )


def save_flax(model: nn.Module, path: str | Path) -> None:
    """Writes a Mixer as the official .npz (float32), which vit_jax and big_vision load; ValueError for other models."""
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"Flax weights are written to a file ending in .npz, not to {path}")
    state = model.state_dict()
    description = describe(state)
    if description is None or description.family != "Mixer":
        raise ValueError(
            f"only a Mixer has an official Flax layout, not {description or type(model).__name__}"
        )
    arrays: dict[str, Any] = dict(_flax_name(key, tensor) for key, tensor in state.items())
    np.savez(path, **arrays)
