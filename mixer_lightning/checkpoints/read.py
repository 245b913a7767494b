"""A file of weights, taken apart without knowing the model: the official Flax and PyTorch releases, timm, our own runs.

Whatever the file, tensors have timm's names, which are those of our models. Nothing that a file holds is ever executed:
pickled objects are refused, and a recipe in it names no code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mixer_lightning import results
from mixer_lightning.checkpoints import flax, hub, run_format, torch_file
from mixer_lightning.checkpoints.describe import Description, describe
from mixer_lightning.checkpoints.families import FAMILIES, PREPROCESSING, TIMM_SCHEME, family_names

TORCH_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".tar")
SUFFIXES = (".npz", ".safetensors", *TORCH_SUFFIXES)
METADATA_KEY = "mixer_lightning"  # in a .safetensors file: what save.save_own writes besides tensors
NO_FAMILY = f"neither a {family_names(' nor a ')}"


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights: its kind for messages, its tensors under timm's names, and what is known of the model.

    `model` is None where the tensors are of no family that is known; `model_name` and `image_size` are what the file
    itself states, the former a file of conf/model. `classes` and `recipe` come with the checkpoints of our own runs.
    `preprocessing` says what images the weights take, as parameters of Augment in data/transforms.py (see
    families.PREPROCESSING): stated by the file or its JSON sidecar, else what is usual for the family.
    `assumed` are those of PREPROCESSING that nothing states.
    """

    path: Path
    kind: str
    tensors: dict[str, Tensor]
    model: Description | None
    model_name: str | None = None
    image_size: int | None = None
    classes: list[str] | None = None
    recipe: dict[str, Any] | None = field(default=None, repr=False)
    preprocessing: dict[str, Any] = field(default_factory=dict)
    assumed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.path.name} ({self.kind}: {self.model or self.model_name or NO_FAMILY})"


def read(path: str | Path) -> Checkpoint:
    """Reads a file of weights on the CPU, whatever model it holds.

    Takes: official Mixer .npz (google-research/vision_transformer; also the older layout that
    google-research/big_vision converts), state dicts of timm and of locuslab/convmixer (also inside training
    checkpoints and with the prefixes of DDP and torch.compile), checkpoints of our own runs (their averaged weights
    where there are some), as .safetensors or as torch files (.pth, .pth.tar, .pt, .ckpt, .bin). Instead of a file, a
    run directory stands for its best.ckpt, or last.ckpt without one, and timm:<name> for timm's published weights.

    Raises:
        FileNotFoundError: there is no such file, or timm's cannot be fetched.
        ValueError: the file is not what its name says, holds pickled objects, or holds no weights.
    """
    name = str(path)
    if name.startswith(TIMM_SCHEME):
        name = name.removeprefix(TIMM_SCHEME)
        fetched = read(hub.fetch(name))
        return replace(fetched, kind=TIMM_SCHEME + name, preprocessing=hub.preprocessing(name), assumed=[])
    path = Path(path).expanduser()
    if path.is_dir():
        path = _in_run(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint file {path}")
    if path.suffix == ".npz":
        return _from_flax(path, _read_npz(path))
    if path.suffix == ".safetensors":
        return _from_state_dict(path, *_read_safetensors(path))
    if path.suffix in TORCH_SUFFIXES:
        content = torch_file.load(path)
        return _from_state_dict(path, _find_state_dict(path, content), content)
    if path.suffix == ".onnx":
        raise ValueError(
            f"{path} is for ONNX Runtime, and its sidecar {results.sidecar_path(path).name} states the preprocessing. "
            "Give the .npz, the file of timm's or ConvMixer's weights, or the run directory that it was made from"
        )
    raise ValueError(f"{path} is not a known kind of checkpoint: its name must end in {', '.join(SUFFIXES)}")


def _in_run(run_dir: Path) -> Path:
    for name in (results.BEST, results.LAST):
        if (run_dir / name).is_file():
            return run_dir / name
    raise FileNotFoundError(
        f"{run_dir} holds neither {results.BEST} nor {results.LAST}: give a run directory, or a file of weights"
    )


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as file:  # np.load would hide a missing zip end behind talk of pickles
            content = np.load(file, allow_pickle=False)
            arrays = {key: content[key] for key in content.files}
    except Exception as error:  # numpy, zipfile and zlib have a dozen ways to fail on a broken file
        if "Object arrays" in str(error):
            raise ValueError(torch_file.pickled(path, "Python objects")) from error
        raise ValueError(torch_file.broken(path, "NumPy .npz archive")) from error
    return {key: _from_bfloat16(array) if array.dtype == "V2" else array for key, array in arrays.items()}


def _from_bfloat16(array: NDArray[Any]) -> NDArray[Any]:
    """NumPy stores bfloat16 as two bytes without a type: the upper half of a float32."""
    return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors, and what save.save_own wrote besides."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    try:
        tensors = dict(load_file(path, device="cpu"))
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except Exception as error:  # its own SafetensorError, OSError, or a KeyError for an unknown dtype
        raise ValueError(torch_file.broken(path, "safetensors file")) from error
    try:
        stated = json.loads(metadata.get(METADATA_KEY, "{}"))
    except ValueError as error:
        raise ValueError(f"{path} has metadata '{METADATA_KEY}' that is not JSON: {error}") from error
    return tensors, {METADATA_KEY: stated} if isinstance(stated, dict) and stated else {}


def _find_state_dict(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """The weights among what a training checkpoint holds: averaged ones first."""
    if run_format.is_run(content):
        return dict(run_format.evaluated_weights(content))
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(content.get(key), Mapping) and content[key]:
            return dict(content[key])
    if not any(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} holds no weights: its keys are {some_of(list(content))}")
    return dict(content)


def _from_flax(path: Path, arrays: Mapping[str, NDArray[Any]]) -> Checkpoint:
    try:
        tensors = flax.from_flax(arrays)
    except (KeyError, ValueError):
        raise ValueError(
            f"{path} is not a Mixer of the official code: it holds {some_of(list(arrays))}"
        ) from None
    if not tensors:
        raise ValueError(f"{path} holds no weights")
    kind = "official Flax Mixer, older layout" if flax.is_older(arrays) else "official Flax Mixer"
    return _checkpoint(path, kind, tensors, results.read_sidecar(path))


def _from_state_dict(path: Path, state: Mapping[str, Any], content: Mapping[str, Any]) -> Checkpoint:
    tensors = {_strip(key): value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no weights")
    kind, recipe = "run of this project", content.get("recipe")
    if "recipe" not in content:
        kind, tensors = _renamed(tensors)
    metadata = content.get(METADATA_KEY) or results.read_sidecar(path)
    if metadata:
        kind = "export of this project"
    if isinstance(recipe, dict):
        return _checkpoint(path, kind, tensors, _metadata_of_run(recipe, content.get("classes")), recipe)
    return _checkpoint(path, kind, tensors, metadata or hub.read_config(path))


def _renamed(tensors: dict[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """The kind of a state dict, and its tensors under timm's names."""
    for layout in (each for family in FAMILIES for each in family.other_layouts):
        if layout.recognise(tensors):
            names = layout.rename(tensors)
            return layout.kind, {names[key]: tensor for key, tensor in tensors.items()}
    return "timm's names", tensors


def _metadata_of_run(recipe: Mapping[str, Any], classes: Any) -> dict[str, Any]:
    """What `save.metadata` says of an export, from the recipe of a run."""
    node, augment, choices = (recipe.get(key) for key in ("model", "augment", "choices"))
    return {
        **(augment if isinstance(augment, Mapping) else {}),
        "model": choices.get("model") if isinstance(choices, Mapping) else None,
        "image_size": recipe.get("image_size"),
        "activation": node.get("activation", "gelu") if isinstance(node, Mapping) else None,
        "classes": classes,
    }


def _checkpoint(
    path: Path,
    kind: str,
    tensors: dict[str, Tensor],
    metadata: Mapping[str, Any],
    recipe: dict[str, Any] | None = None,
) -> Checkpoint:
    """Puts together what the tensors and `metadata` tell."""
    model = describe(tensors)
    size = metadata.get("image_size")
    size = size if isinstance(size, int) else None
    if model is not None and metadata and model.family.has_activation:  # more than the tensors tell
        model = replace(model, image_size=size, activation=metadata.get("activation"))
    name, classes = metadata.get("model"), metadata.get("classes")
    # What a run's recipe leaves out was Augment's default, whatever is usual for the family.
    usual = model.family.preprocessing if model is not None and recipe is None else {}
    return Checkpoint(
        path,
        kind,
        tensors,
        model,
        model_name=name if isinstance(name, str) else None,
        image_size=size,
        classes=[str(each) for each in classes] if isinstance(classes, list) else None,
        recipe=recipe,
        preprocessing={**usual, **{key: metadata[key] for key in PREPROCESSING if key in metadata}},
        assumed=[key for key in PREPROCESSING if key not in metadata] if recipe is None else [],
    )


def _strip(key: str) -> str:
    """Takes off what DistributedDataParallel ("module.") and torch.compile ("_orig_mod.") put before a name."""
    return re.sub(r"^(module\.|_orig_mod\.)+", "", key)


def some_of(items: list[str], *, separator: str = ", ", limit: int = 4) -> str:
    """The first few, and how many more there are."""
    more = f"{separator}and {len(items) - limit} more" if len(items) > limit else ""
    return separator.join(items[:limit]) + more
