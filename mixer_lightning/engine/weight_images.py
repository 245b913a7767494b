"""The weights of a model that make pictures: token mixing over the grid of patches, depthwise kernels, the stem.

N units   S = g^2 tokens   C channels of the stem   k, P sides of a kernel
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from mixer_lightning.checkpoints.read import read
from mixer_lightning.checkpoints.restore import Restored, restore
from mixer_lightning.reports import unit_images
from mixer_lightning.reports.token_mixing import DEPTHWISE, FIRST, TOKEN_MIXING
from mixer_lightning.reports.weights import Layer, Weights

#: How the layers that mix tokens are called: of Mixer and gMixer the first of the MLP, of ResMLP and gMLP the only one.
TOKEN_LAYERS = (".mlp_tokens.fc1", ".linear_tokens", ".mlp_channels.gate.proj")

Layers = dict[str, NDArray[np.float32]]  # name of the layer -> [N, g, g]


def restored(checkpoint: str | Path, *, model: str | None = None, image_size: int | None = None) -> Restored:
    """The model that a checkpoint holds; its head, which nobody looks at, is a new one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is unreadable, or does not tell its model.
    """
    return restore(read(checkpoint), model=model, image_size=image_size, num_classes=1)


def title_of(found: Restored) -> str:
    """The model's name and its image size."""
    return f"{found.name or type(found.model).__name__} at {found.image_size} px"


def weights_of(checkpoint: str | Path, name: str) -> Weights:
    """What is drawn of a checkpoint: of each kind the first blocks, in their order, and the stem.

    Raises:
        FileNotFoundError, ValueError: as `restored`.
    """
    found = restored(checkpoint)
    layers = {
        kind: [
            Layer(layer, images, unit_images.opposites_in_order(images)[0])
            for layer, images in list(of_kind.items())[:FIRST]
        ]
        for kind, of_kind in layers_of(found.model).items()
    }
    return Weights(name=name, model=title_of(found), layers=layers, stem=stem_of(found.model))


def layers_of(model: nn.Module) -> dict[str, Layers]:
    """All layers whose units are images: kind -> name -> float32 [N, sides of the grid], as the forward pass has them.

    Unit j of a token-mixing layer is row j of the weight [N, S], the column j of the paper's and of Flax's [S, N], on
    the row-major grid of tokens. Layers of tokens that fill no square are left out.
    """
    found: dict[str, Layers] = {TOKEN_MIXING: {}, DEPTHWISE: {}}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(TOKEN_LAYERS):
            side = math.isqrt(module.in_features)
            if side**2 == module.in_features:
                found[TOKEN_MIXING][name] = _array(module.weight.view(-1, side, side))
        elif isinstance(module, nn.Conv2d) and _is_depthwise(module):
            found[DEPTHWISE][name] = _array(module.weight[:, 0])
    return {kind: layers for kind, layers in found.items() if layers}


def stem_of(model: nn.Module) -> NDArray[np.float32] | None:
    """Kernels of the first convolution [C, P, P, 3], of one channel for grey images; None where it sees no image."""
    first = next(_convolutions(model), None)
    if first is None or first.weight.shape[1] not in (1, 3):
        return None
    return _array(first.weight.permute(0, 2, 3, 1))


def _is_depthwise(module: nn.Conv2d) -> bool:
    return (
        1 < module.in_channels == module.groups == module.out_channels and math.prod(module.kernel_size) > 1
    )


def _convolutions(model: nn.Module) -> Iterator[nn.Conv2d]:
    return (module for module in model.modules() if isinstance(module, nn.Conv2d))


def _array(weight: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(weight.detach().float().numpy())
