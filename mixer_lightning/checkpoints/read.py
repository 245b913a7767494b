"""A file of weights, taken apart without knowing the model: the official Flax and PyTorch releases, timm, our own runs.

Whatever the file, tensors have timm's names, which are those of our models. Nothing that a file holds is ever executed:
pickled objects are refused, and a recipe in it names no code.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mixer_lightning import results
from mixer_lightning.checkpoints import flax, hub, metadata, run_format, sharded, state_dicts, torch_file
from mixer_lightning.checkpoints.describe import Description, describe
from mixer_lightning.checkpoints.families import (
    PREPROCESSING,
    TIMM_SCHEME,
    UNUSUAL,
    family_of_model,
    model_named,
    preprocessing_of_name,
)
from mixer_lightning.checkpoints.metadata import Metadata
from mixer_lightning.files import from_json
from mixer_lightning.models.presets import list_models

SUFFIXES = (".npz", ".safetensors", *hub.TORCH_SUFFIXES)
#: Bytes that one byte of a zip archive can become (zlib.net, "maximum compression factor").
MOST_DEFLATED = 1032


class TooLarge(ValueError):
    """A file declares more than it can hold."""


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights: its kind for messages, its tensors under timm's names, and what is known of the model.

    `model` is None where the tensors are of no family that is known. The rest is stated by the file, else by what lies
    beside it, else by its name (metadata.py): `model_name`, a file of conf/model, its `parameters`, `image_size`,
    `classes`, `num_classes` where the head has no weights to tell it, and the `recipe` of one of our own runs.
    `preprocessing` says what images the weights take, as parameters of Augment in data/transforms.py (see
    families.PREPROCESSING), where nothing is stated what is usual for the family; `assumed` are those of PREPROCESSING
    that nothing states. `shards` are the files that hold the tensors, if not `path` itself.
    """

    path: Path
    kind: str
    tensors: dict[str, Tensor]
    model: Description | None
    model_name: str | None = None
    image_size: int | None = None
    classes: list[str] | None = None
    num_classes: int | None = None
    recipe: dict[str, Any] | None = field(default=None, repr=False)
    parameters: dict[str, Any] = field(default_factory=dict)
    preprocessing: dict[str, Any] = field(default_factory=dict)
    assumed: list[str] = field(default_factory=list)
    shards: list[Path] = field(default_factory=list)

    def __str__(self) -> str:
        model = self.model or self.model_name
        return f"{self.path.name} ({self.kind}: {model})" if model else f"{self.path.name} ({self.kind})"


def read(path: str | Path) -> Checkpoint:
    """Reads a file of weights on the CPU, whatever model it holds.

    Takes: official Mixer .npz (google-research/vision_transformer; also the older layout that
    google-research/big_vision converts), state dicts of timm and of locuslab/convmixer (also inside the training
    checkpoints of other programs, see state_dicts.py), checkpoints of our own runs (averaged weights where there are
    some), as .safetensors or as torch files (.pth, .pth.tar, .pt, .ckpt, .bin), also in shards with an .index.json.
    Instead of a file, a run directory stands for its best.ckpt, or last.ckpt without one, a folder as on the hub for
    its model.safetensors or pytorch_model.bin, and timm:<name> for timm's published weights.

    Raises:
        FileNotFoundError: there is no such file, or timm's cannot be fetched.
        ValueError: the file is not what its name says, holds pickled objects, or holds no weights.
    """
    name = str(path)
    if name.startswith(TIMM_SCHEME):
        name = name.removeprefix(TIMM_SCHEME)
        fetched = read(hub.fetch(name))
        told: dict[str, Any] = {"preprocessing": hub.preprocessing(name), "assumed": []}
        if fetched.model is None:
            told |= {"model_name": model_named(name, list_models()), "image_size": hub.image_size(name)}
        return replace(fetched, kind=TIMM_SCHEME + name, **told)
    path = Path(path).expanduser()
    if path.is_dir():
        path = hub.file_in(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint file {path}")
    if path.suffix == ".npz":
        return _from_flax(path, _read_npz(path))
    if path.name.endswith(hub.INDEX_SUFFIX):
        return _from_shards(path)
    if path.suffix == ".safetensors":
        return _from_state_dict(path, *_read_safetensors(path))
    if path.suffix in hub.TORCH_SUFFIXES:
        content = _read_torch(path)
        return _from_state_dict(path, _state_dict(path, content), content)
    if path.suffix == ".onnx":
        raise ValueError(
            f"{path} is for ONNX Runtime, and its sidecar {results.sidecar_path(path).name} states the preprocessing. "
            "Give the .npz, the file of timm's or ConvMixer's weights, or the run directory that it was made from"
        )
    raise ValueError(f"{path} is not a known kind of checkpoint: its name must end in {', '.join(SUFFIXES)}")


def _read_torch(path: Path) -> dict[str, Any]:
    """The content of a torch file; where one of a run is damaged, it is said which of its others is whole."""
    try:
        return sharded.load(path)
    except torch_file.Damaged as error:
        names = (results.BEST, results.LAST, results.PREVIOUS)
        for other in (path.with_name(name) for name in names if path.name in names and name != path.name):
            try:
                step = torch_file.load(other)["step"]
            except (ValueError, OSError, KeyError):
                continue
            raise torch_file.Damaged(f"{error}, or take {other} of step {step:,}, which is whole") from error
        raise


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        _refuse_declared(path)
        with path.open("rb") as file:  # np.load would hide a missing zip end behind talk of pickles
            content = np.load(file, allow_pickle=False)
            arrays = {key: content[key] for key in content.files}
    except TooLarge:
        raise
    except Exception as error:  # numpy, zipfile and zlib have a dozen ways to fail on a broken file
        if "Object arrays" in str(error):
            raise ValueError(torch_file.pickled(path, "Python objects")) from error
        raise ValueError(torch_file.broken(path, "NumPy .npz archive")) from error
    return {key: _from_bfloat16(array) if array.dtype == "V2" else array for key, array in arrays.items()}


def _refuse_declared(path: Path) -> None:
    """TooLarge for an .npz whose headers declare more than it holds: NumPy would ask for that memory first."""
    with zipfile.ZipFile(path) as archive:
        packed = sum(member.compress_size for member in archive.infolist())
        if packed > path.stat().st_size:
            raise TooLarge(
                f"{path} is no file of weights: its arrays take {packed:,} bytes of it, and it has fewer"
            )
        for member in archive.infolist():
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
                shape, _, dtype = read_header(file)
            declared = math.prod(shape) * dtype.itemsize
            if declared > member.file_size or member.file_size > MOST_DEFLATED * max(member.compress_size, 1):
                name = member.filename.removesuffix(".npy")
                raise TooLarge(
                    f"{path} is damaged, or made up: '{name}' declares {declared:,} bytes and holds fewer"
                )


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
            texts = file.metadata() or {}
    except Exception as error:  # its own SafetensorError, OSError, or a KeyError for an unknown dtype
        raise ValueError(torch_file.broken(path, "safetensors file")) from error
    torch_file.check_safetensors(path, texts)
    if metadata.KEY not in texts:
        return tensors, {}
    stated = from_json(texts[metadata.KEY], f"{path}: its metadata '{metadata.KEY}'")
    return tensors, {metadata.KEY: stated} if stated else {}


def _state_dict(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """The weights among what a training checkpoint holds: averaged ones first."""
    if run_format.is_run(content):
        return dict(run_format.evaluated_weights(content))
    found = state_dicts.find(content)
    if found is None:
        raise ValueError(f"{path} holds no weights: its keys are {some_of(list(content))}")
    return found


def _from_shards(index: Path) -> Checkpoint:
    """Of an index of Hugging Face's, whose files lie beside it."""
    places = hub.weight_map(index)
    _, *shards = hub.files_of(index)
    for shard in shards:
        if not shard.is_file():
            raise FileNotFoundError(f"{shard} is missing, which {index.name} names")
    tensors: dict[str, Any] = {}
    for shard in shards:
        tensors |= _read_safetensors(shard)[0] if shard.suffix == ".safetensors" else torch_file.load(shard)
    if missing := sorted(places.keys() - tensors.keys()):
        raise ValueError(f"{index} names tensors that its files do not hold: {some_of(missing)}")
    found = _from_state_dict(index, {key: tensors[key] for key in places}, {})
    return replace(found, shards=shards)


def _from_flax(path: Path, arrays: Mapping[str, NDArray[Any]]) -> Checkpoint:
    try:
        tensors = flax.from_flax(arrays)
    except (KeyError, ValueError):
        if other := flax.other_network(arrays):
            raise ValueError(
                f"{path} holds a {other[0]}, of which the .npz is not read: `mixer models {other[1]}` lists timm's "
                "files of the same weights (--json: all of them)"
            ) from None
        raise ValueError(
            f"{path} is not a Mixer of the official code: it holds {some_of(list(arrays))}"
        ) from None
    if not tensors:
        raise ValueError(f"{path} holds no weights")
    kind = "official Flax Mixer, older layout" if flax.is_older(arrays) else "official Flax Mixer"
    return _checkpoint(path, kind, tensors, Metadata())


def _from_state_dict(path: Path, state: Mapping[str, Any], content: Mapping[str, Any]) -> Checkpoint:
    """Of the tensors of a file, and what else it holds: a recipe of a run, or what an export states."""
    recipe, stated = content.get("recipe"), content.get(metadata.KEY)
    if isinstance(recipe, Mapping):
        tensors = {_strip(key): value for key, value in state.items() if isinstance(value, Tensor)}
        itself = metadata.of_recipe(recipe, content.get("classes"), f"{path}: its recipe")
        return _checkpoint(path, "run of this project", tensors, itself)
    kind, tensors = state_dicts.renamed(state)
    if stated or results.sidecar_path(path).is_file():
        kind = "export of this project"
    itself = metadata.of_export(stated, str(path)) if stated else Metadata()
    return _checkpoint(path, kind, tensors, itself)


def _checkpoint(path: Path, kind: str, tensors: dict[str, Tensor], itself: Metadata) -> Checkpoint:
    """Puts together what the tensors tell, the file states, what lies beside it states, and its name says."""
    if not tensors:
        raise ValueError(f"{path} holds no weights")
    state_dicts.refuse_absurd(path, tensors)
    model = describe(tensors)
    if model is not None:
        state_dicts.refuse_unrelated(path, model, tensors)
    beside = metadata.beside(path, model) if itself.recipe is None else Metadata()
    stated = beside | itself
    name = _model_name(path, model, stated)
    if model is not None and model.family.has_activation:  # more than the tensors tell
        model = replace(model, image_size=stated.image_size, activation=stated.activation)
    by_name: dict[str, Any] = {}
    usual: Mapping[str, Any] = {}
    # What a run's recipe leaves out was Augment's default, whatever is usual for the family.
    if model is not None and stated.recipe is None:
        by_name, usual = preprocessing_of_name(model.family, path.name), model.family.preprocessing
    told = {**by_name, **stated.preprocessing}
    return Checkpoint(
        path,
        kind,
        tensors,
        model,
        model_name=name,
        image_size=stated.image_size,
        classes=stated.classes,
        num_classes=stated.num_classes,
        recipe=stated.recipe,
        parameters=stated.parameters,
        preprocessing={**usual, **told},
        assumed=[key for key in PREPROCESSING if key not in (*told, *UNUSUAL)]
        if stated.recipe is None
        else [],
    )


def _model_name(path: Path, model: Description | None, stated: Metadata) -> str | None:
    """Which file of conf/model this is: one with the sizes of the tensors, else the one that is stated, or named."""
    called = [name for name in (stated.model, model_named(path.name, list_models())) if name]
    if model is None:  # then a name of one that its tensors would tell is not true
        return next((name for name in called if family_of_model(name) is None), None)
    return next((name for name in called if name in model.names), model.name)


def _strip(key: str) -> str:
    """Takes off what DistributedDataParallel ("module.") and torch.compile ("_orig_mod.") put before a name."""
    return re.sub(r"^(module\.|_orig_mod\.)+", "", key)


def some_of(items: list[str], *, separator: str = ", ", limit: int = 4) -> str:
    """The first few, and how many more there are."""
    more = f"{separator}and {len(items) - limit} more" if len(items) > limit else ""
    return separator.join(items[:limit]) + more
