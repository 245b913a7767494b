"""A Mixer's official Flax layout (google-research/vision_transformer, vit_jax/models_mixer.py), and the older one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# A kernel is stored as [in, out], a stem kernel as [P, P, 3, C].
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
#: Other networks that their authors publish as .npz, by a part of the names in it: what they are, and the word by which
#: `mixer models` lists timm's copies of these weights.
OTHERS = {
    "Transformer/encoderblock_": ("ViT of google-research/vision_transformer", "vit"),
    "root_block/standardized_conv2d": ("BiT of google-research/big_transfer", "bit"),
}
_NUMBERED = re.compile(r"(.+)_(\d+)")
TIMM_TO_FLAX = {timm: flax for flax, timm in FLAX_TO_TIMM.items()}


def from_flax(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    """Flax's arrays -> float32 tensors under timm's names; KeyError or ValueError for a name that no Mixer has."""
    plain = _parameters(arrays)
    names = _linen_names(plain)
    tensors = {}
    for key, array in plain.items():
        name, array = _timm_name(*_from_older(names[key], array))
        tensors[name] = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    return tensors


def other_network(names: Iterable[str]) -> tuple[str, str] | None:
    """The row of `OTHERS` whose network an .npz with these names holds, if it is one of them."""
    return next((OTHERS[part] for name in names for part in OTHERS if part in name), None)


def _parameters(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """A training checkpoint's parameters, without the state of its optimiser (big_vision/utils.py, `load_params`)."""
    for root in ("params/", "opt/target/"):
        found = {key.removeprefix(root): array for key, array in arrays.items() if key.startswith(root)}
        if found:
            return found
    return dict(arrays)


def to_flax(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    """A Mixer's state dict -> float32 arrays in the official layout."""
    return dict(_flax_name(name, tensor) for name, tensor in tensors.items())


def is_older(arrays: Mapping[str, NDArray[Any]]) -> bool:
    """Whether this is the layout before the public code."""
    return any("Mixer/" in key for key in arrays)  # the name of its root


def _linen_names(keys: Iterable[str]) -> dict[str, str]:
    """The names that Flax gives today, of those that it once gave.

    Before Linen, the parts of a module were counted together: a block held LayerNorm_0 and, after its token mixing,
    LayerNorm_2. Linen counts each kind by itself. Official loaders (vit_jax/checkpoint.py, big_vision's
    models/mlp_mixer.py) therefore renumber every kind in its order: flax.training.checkpoints.convert_pre_linen.
    """
    members: dict[tuple[str, str], set[int]] = {}  # (path of a module, kind) -> numbers
    for key in keys:
        parts = key.split("/")
        for depth, part in enumerate(parts):
            if numbered := _NUMBERED.fullmatch(part):
                members.setdefault(("/".join(parts[:depth]), numbered[1]), set()).add(int(numbered[2]))

    def renamed(key: str) -> str:
        parts = key.split("/")
        for depth, part in enumerate(key.split("/")):
            if numbered := _NUMBERED.fullmatch(part):
                numbers = sorted(members["/".join(key.split("/")[:depth]), numbered[1]])
                parts[depth] = f"{numbered[1]}_{numbers.index(int(numbered[2]))}"
        return "/".join(parts)

    return {key: renamed(key) for key in keys}


def _from_older(key: str, array: NDArray[Any]) -> tuple[str, NDArray[Any]]:
    """The layout before the public code, as big_vision/models/mlp_mixer.py converts it; others pass unchanged.

    Its blocks and last norm stand under Mixer/, its stem (`embedding`) and head at the root.
    """
    key = re.sub(r"^embedding/", "stem/", key)
    key = key.replace("Mixer/encoder_norm/", "pre_head_layer_norm/")
    key = re.sub(r"Mixer/encoderblock_(\d+)/", r"MixerBlock_\1/", key)
    mlp = re.fullmatch(r"(.*)/(token|channel)_mixing_phase_0/(kernel|bias)([12])", key)
    if not mlp:
        return key, array
    block, kind, leaf, number = mlp.groups()
    return f"{block}/{kind}_mixing/Dense_{int(number) - 1}/{leaf}", array.squeeze()


def _timm_name(key: str, array: NDArray[Any]) -> tuple[str, NDArray[Any]]:
    block = re.match(r"MixerBlock_(\d+)/", key)
    module, leaf = (key[block.end() :] if block else key).rsplit("/", 1)
    prefix = f"blocks.{block[1]}." if block else ""
    name = f"{prefix}{FLAX_TO_TIMM[module]}.{ {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias'}[leaf] }"
    return name, array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def _flax_name(name: str, tensor: Tensor) -> tuple[str, NDArray[Any]]:
    block = re.match(r"blocks\.(\d+)\.", name)
    module, leaf = (name[block.end() :] if block else name).rsplit(".", 1)
    prefix = f"MixerBlock_{block[1]}/" if block else ""
    if leaf == "weight":
        leaf = "scale" if tensor.ndim == 1 else "kernel"
    array = tensor.detach().float().cpu().numpy()
    array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    return f"{prefix}{TIMM_TO_FLAX[module]}/{leaf}", np.ascontiguousarray(array)
