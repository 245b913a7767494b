"""Weights to files: timm's state dict, the official Flax layout of a Mixer, and our own export."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mixer_lightning.checkpoints import torch_file
from mixer_lightning.checkpoints.describe import describe
from mixer_lightning.checkpoints.flax import to_flax
from mixer_lightning.checkpoints.metadata import KEY
from mixer_lightning.checkpoints.restore import Restored


def save_timm(model: nn.Module, path: str | Path) -> None:
    """Writes a model's state dict, which has timm's names, as .safetensors, .pth or .pt (else ValueError)."""
    path = Path(path)
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    if path.suffix == ".safetensors":
        _write_safetensors(path, tensors, {"format": "pt"})
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
    if description is None or not description.family.has_flax_layout:
        raise ValueError(
            f"only a Mixer has an official Flax layout, not {description or type(model).__name__}"
        )
    arrays: dict[str, Any] = to_flax(state)
    np.savez(path, **arrays)


def save_own(path: str | Path, restored: Restored) -> None:
    """Writes a model as .safetensors with all that prediction needs; `restore` needs nothing else.

    Its metadata hold a checksum of the tensors, as those of `save_timm` do: a reader of ours notices a changed bit.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"such a file ends in .safetensors, not {path}")
    tensors = {key: value.detach().cpu().contiguous() for key, value in restored.model.state_dict().items()}
    _write_safetensors(path, tensors, {"format": "pt", KEY: json.dumps(metadata(restored))})


def _write_safetensors(path: Path, tensors: dict[str, Tensor], texts: dict[str, str]) -> None:
    from safetensors.torch import save

    content = save(
        tensors, {**texts, torch_file.CHECKSUM: "0" * 64}
    )  # its bytes: a header, then those of the tensors
    begin = torch_file.first_tensor_byte(content[:8])
    digest = hashlib.sha256(memoryview(content)[begin:]).hexdigest()
    header = content[:begin].replace(b'"' + b"0" * 64 + b'"', f'"{digest}"'.encode(), 1)
    with path.open("wb") as file:  # save_file would let nobody but its owner read it
        file.write(header)
        file.write(memoryview(content)[begin:])


def metadata(restored: Restored) -> dict[str, Any]:
    """What a file, or its JSON sidecar, states of a model besides its tensors, as plain containers."""
    head = restored.model.get_submodule(str(restored.model.head_name))
    is_told = any(True for _ in head.parameters())
    found = {
        "model": restored.name,
        "image_size": restored.image_size,
        "parameters": restored.parameters or None,
        "activation": getattr(restored.model, "activation", None),
        "classes": restored.classes,
        "num_classes": None if is_told else restored.num_classes,
        **restored.preprocessing,
    }
    return {key: value for key, value in found.items() if value is not None}
