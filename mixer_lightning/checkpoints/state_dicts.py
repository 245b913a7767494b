"""The weights of a model in what other programs save: under which key, behind which prefix, by whose names.

Known are state dicts alone, and the training checkpoints of timm (`state_dict`, `state_dict_ema`), torchvision and DeiT
(`model`, `model_ema`), Lightning (a `state_dict` with the attribute's name before each tensor), torch's AveragedModel
and DistributedDataParallel (`module.`), torch.compile (`_orig_mod.`), and what tutorials write (`model_state_dict`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixer_lightning.checkpoints.describe import Description
from mixer_lightning.checkpoints.families import FAMILIES

DEPTH = 3  # of mappings in mappings
#: In a key, or before the names of tensors.
AVERAGED = re.compile(r"(^|[._\W])(ema|averaged?|swa|polyak)($|[._\W])")
#: Keys under which weights stand where their names are of no family that is known; averaged ones first.
KEYS = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "weights",
    "params",
)
LARGE = 1 << 30  # bytes, more than any layer of a published model


def find(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """The tensors of a model in a training checkpoint, averaged ones first; None where it holds none."""
    places = list(_mappings(content, ""))
    of_families = [(path, state) for path, state in places if _prefixes(state)]
    if of_families:
        _, state = max(of_families, key=lambda place: bool(AVERAGED.search(place[0])))  # the first of equals
        return dict(state)
    by_path = {path.removeprefix("."): state for path, state in places}
    return next((dict(by_path[key]) for key in ("", *KEYS) if key in by_path), None)


def _mappings(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Everything in nested mappings that has names of tensors, and the keys that lead to it."""
    tensors = {str(key): value for key, value in node.items() if isinstance(value, Tensor)}
    if tensors:
        yield path, tensors
    if path.count(".") < DEPTH:
        for key, value in node.items():
            if isinstance(value, Mapping):
                yield from _mappings(value, f"{path}.{key}")


def _prefixes(state: Mapping[str, Tensor]) -> list[str]:
    """What stands before the names of a model of FAMILIES, averaged weights first; empty without such a model."""
    first = [family.first_tensor for family in FAMILIES]
    first += [layout.first_tensor for family in FAMILIES for layout in family.other_layouts]
    found = {name[: -len(each)] for name in state for each in first if f".{name}".endswith(f".{each}")}
    return sorted(
        (prefix for prefix in found if _names(_below(state, prefix)) is not None),
        key=lambda prefix: (not AVERAGED.search(prefix), len(prefix), prefix),
    )


def _common_prefix(state: Mapping[str, Tensor]) -> str:
    """What stands before every name, of a model of no family: none of those of conf/model lies in one submodule."""
    names = [name for name in state if name != "n_averaged"]
    prefix = ""
    while names and len({name.split(".")[0] for name in names}) == 1 and all("." in name for name in names):
        prefix += f"{names[0].split('.')[0]}."
        names = [name.partition(".")[2] for name in names]
    return prefix


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _names(state: Mapping[str, Tensor]) -> tuple[str, dict[str, str], tuple[str, ...]] | None:
    """Whose names these are, timm's name of each, and Layout.leading_axes; None for those of no family."""
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for family in FAMILIES:
        for layout in family.other_layouts:
            if layout.recognise(shapes):
                return layout.kind, layout.rename(shapes), layout.leading_axes
        if family.first_tensor in shapes:
            return "timm's names", {name: name for name in shapes}, ()
    return None


def renamed(state: Mapping[str, Any]) -> tuple[str, dict[str, Tensor]]:
    """The kind of a state dict for messages, and its tensors under timm's names, without what stands before them.

    Where a prefix is taken off, tensors without it are another's: the metrics and losses of a LightningModule, the
    count `n_averaged` of an AveragedModel.
    """
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    prefix = next(iter(_prefixes(tensors)), None)
    if prefix is None:
        prefix = _common_prefix(tensors)
    mine = _below(tensors, prefix)
    if prefix == "":
        mine.pop("n_averaged", None)
    kind, names, leading_axes = _names(mine) or ("timm's names", {name: name for name in mine}, ())
    if re.fullmatch(r"(module\.|_orig_mod\.)*", prefix) is None:
        kind += f" under '{prefix.rstrip('.')}'"
    found = {names[name]: tensor for name, tensor in mine.items()}
    return kind, {
        name: tensor[None, None] if name.endswith(leading_axes) and tensor.ndim == 1 else tensor
        for name, tensor in found.items()
    }


def refuse_absurd(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """See that what tensors declare is there: a few bytes can be said to be of any shape.

    Raises:
        ValueError: a tensor is empty, not in memory as plain numbers, or of a shape that its file does not fill.
    """
    unheld: dict[str, int] = {}
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise ValueError(
                f"{path}: {name} is a {tensor.layout} tensor on {tensor.device}, not plain numbers"
            )
        if tensor.numel() == 0:
            raise ValueError(f"{path}: {name} {list(tensor.shape)} is empty")
        unheld[name] = tensor.numel() * tensor.element_size() - tensor.untyped_storage().nbytes()
    if sum(size for size in unheld.values() if size > 0) > LARGE:
        name = max(unheld, key=lambda name: unheld[name])
        raise ValueError(
            f"{path}: {name} is said to be {list(tensors[name].shape)}, of which {unheld[name]:,} bytes are not there: "
            "the file is damaged, or made up"
        )


def refuse_unrelated(path: Path, model: Description, tensors: Mapping[str, Tensor]) -> None:
    """See that tensors belong to one model before memory is asked for what the sizes of some of them add up to.

    Raises:
        ValueError: the model that they describe has many more numbers than they.
    """
    if model.image_size is None and model.family.widened_size is not None:
        return  # it cannot be built, which is said where it is
    parameters: dict[str, Any] = {**model.sizes}
    if model.family.has_activation:
        parameters["activation"] = "gelu"  # has no numbers
    with torch.device("meta"):
        size = model.image_size or model.sizes["patch_size"]
        made = model.family.build(parameters, max(model.num_classes, 1), size)
    expected = sum(parameter.numel() for parameter in made.parameters())
    found = sum(tensor.numel() for tensor in tensors.values())
    if expected > 2 * found + LARGE // 4:
        raise ValueError(
            f"{path}: its tensors do not belong to one model: {model} has {expected:,} numbers, they are {found:,}"
        )
