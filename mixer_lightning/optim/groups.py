"""Which parameters decay."""

from __future__ import annotations

from typing import Any

from torch import nn


def parameter_groups(
    model: nn.Module, *, weight_decay: float, decay_bias_and_norm: bool
) -> list[dict[str, Any]]:
    """The trainable parameters as one or two optimiser groups, biases and normalisation scales undecayed.

    A parameter with at most one axis (every bias, every LayerNorm and BatchNorm scale) gets weight decay 0
    unless `decay_bias_and_norm`. On a Mixer this is big_vision's rule `.*/kernel` (configs/mlp_mixer_i1k.py
    leaves `wd_mults` at that default), on a ConvMixer timm's (optim/_param_groups.py: `param.ndim <= 1`).

    Returns dicts with `params` and `weight_decay`, the decayed group first, an empty group left out.
    Raises ValueError when nothing in the model can be trained.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("The model has no parameter with requires_grad=True: unfreeze at least its head.")
    decayed = [parameter for parameter in parameters if parameter.ndim > 1 or decay_bias_and_norm]
    undecayed = [parameter for parameter in parameters if parameter.ndim <= 1 and not decay_bias_and_norm]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
