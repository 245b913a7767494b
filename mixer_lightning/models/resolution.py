"""A Mixer on larger images than it was trained on (Tolstikhin et al., arXiv 2105.01601, appendix C).

The larger image is seen as K x K parts of the size of training. Token mixing gets K^2 times as many inputs and hidden
units and starts block-diagonal: each part is mixed as before, none sees another. Fine-tuning then fills in the rest.
The grid of a larger image is row-major, so the tokens of a part are not neighbours in it: `part_major` says where they
stand, and the weights are placed there, so that the forward pass stays that of any Mixer.

    g patches along a side in training   K parts along a side   S = g^2 tokens, S' = K^2 S
    Ds tokens_mlp_dim, Ds' = K^2 Ds
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mixer_lightning.models.mixer import Mixer, Mlp


def part_major(*, grid: int, parts: int) -> Tensor:
    """Row-major indices [S'] of all tokens, in the order part row, part column, row and column inside the part."""
    index = torch.arange((parts * grid) ** 2).view(
        parts, grid, parts, grid
    )  # part row, row, part column, column
    return index.transpose(1, 2).flatten()


def enlarge(tensors: Mapping[str, Tensor], *, grid: int, parts: int) -> dict[str, Tensor]:
    """A Mixer's state dict for images of `parts` times the side; all but token mixing stays as it is."""
    place = part_major(grid=grid, parts=parts)
    return {key: _enlarge(key, tensor, place, parts**2) for key, tensor in tensors.items()}


def is_token_mixing(key: str) -> bool:
    """Whether a name of the state dict is one of those tensors that `enlarge` changes."""
    return ".mlp_tokens." in key


def _enlarge(key: str, tensor: Tensor, place: Tensor, count: int) -> Tensor:
    if not is_token_mixing(key):
        return tensor
    if key.endswith("fc1.bias"):  # b1 [Ds]
        return tensor.repeat(count)  # [Ds']
    if key.endswith("fc2.bias"):  # b2 [S]
        enlarged = tensor.new_empty(len(place))  # [S']
        enlarged[place] = tensor.repeat(count)
        return enlarged
    blocks = torch.block_diag(*[tensor] * count)  # type: ignore[no-untyped-call]
    enlarged = torch.empty_like(blocks)
    if key.endswith("fc1.weight"):  # W1 [Ds, S]
        enlarged[:, place] = blocks  # [Ds', S']
    else:  # W2 [S, Ds]
        enlarged[place] = blocks  # [S', Ds']
    return enlarged


def widen(model: Mixer, *, parts: int) -> None:
    """Gives token mixing parts^2 times as many hidden units; its weights are then new, and no optimiser's yet."""
    for block in model.blocks:
        old = block.mlp_tokens
        assert isinstance(old, Mlp)
        weight = old.fc1.weight
        new: nn.Module = Mlp(dim=weight.shape[1], hidden_dim=parts**2 * weight.shape[0], over_tokens=True)
        block.mlp_tokens = new.to(device=weight.device, dtype=weight.dtype).train(old.training)
