"""The optimisers of the papers, each a function of the model with every setting written out.

All of them take `lr` as the peak rate (the schedule multiplies it) and leave biases and normalisation scales
undecayed unless `decay_bias_and_norm`. `layer_decay` gives lower layers lower rates (see
groups.py). Gradient clipping by the recipe's `clip_grad_norm` happens outside.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mixer_lightning.optim.groups import parameter_groups
from mixer_lightning.ranges import BelowOne, NonNegativeFloat, PositiveFloat, PositiveFraction, check_ranges


@check_ranges
def adamw(
    model: nn.Module,
    *,
    lr: PositiveFloat,
    weight_decay: NonNegativeFloat,
    beta1: BelowOne = 0.9,
    beta2: BelowOne = 0.999,
    eps: PositiveFloat = 1e-8,
    decay_bias_and_norm: bool = False,
    layer_decay: PositiveFraction | None = None,
) -> torch.optim.Optimizer:
    """Adam whose weight decay skips the moments: w <- w - s·lr·(Adam step + weight_decay·w), s the schedule.

    It is the Mixer papers' "Adam with weight decay .1": big_vision decays by 1e-4 times the schedule and not
    times lr, which at lr 1e-3 is weight_decay 0.1 here. ConvMixer uses it with eps 1e-3.
    Source: arXiv 1711.05101; arXiv 2105.01601, Table 4 and big_vision configs/mlp_mixer_i1k.py.
    """
    groups = parameter_groups(
        model,
        weight_decay=weight_decay,
        decay_bias_and_norm=decay_bias_and_norm,
        lr=lr,
        layer_decay=layer_decay,
    )
    optimizer = torch.optim.AdamW(
        groups, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay, fused=_can_fuse(groups)
    )
    return _unscaled_by_the_loop(optimizer)


@check_ranges
def adam(
    model: nn.Module,
    *,
    lr: PositiveFloat,
    weight_decay: NonNegativeFloat = 0.0,
    beta1: BelowOne = 0.9,
    beta2: BelowOne = 0.999,
    eps: PositiveFloat = 1e-8,
    decay_bias_and_norm: bool = False,
    layer_decay: PositiveFraction | None = None,
) -> torch.optim.Optimizer:
    """Adam with L2 regularisation: weight_decay·w is added to the gradient, before the moments.

    This is Kingma and Ba's optimiser (arXiv 1412.6980), NOT what the Mixer paper calls Adam with weight
    decay: that one is decoupled, hence `adamw`.
    """
    groups = parameter_groups(
        model,
        weight_decay=weight_decay,
        decay_bias_and_norm=decay_bias_and_norm,
        lr=lr,
        layer_decay=layer_decay,
    )
    optimizer = torch.optim.Adam(
        groups, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay, fused=_can_fuse(groups)
    )
    return _unscaled_by_the_loop(optimizer)


@check_ranges
def sgd(
    model: nn.Module,
    *,
    lr: PositiveFloat,
    momentum: BelowOne = 0.9,
    weight_decay: NonNegativeFloat = 0.0,
    nesterov: bool = False,
    decay_bias_and_norm: bool = False,
    layer_decay: PositiveFraction | None = None,
) -> torch.optim.Optimizer:
    """SGD with momentum, v <- momentum·v + g; w <- w - s·lr·v: the fine-tuning optimiser of Mixer and ViT.

    Weight decay is L2 (added to the gradient) and 0 in the papers' fine-tuning.
    Raises ValueError when `nesterov` is asked for without momentum.
    Source: arXiv 2105.01601, Appendix C; arXiv 2010.11929, Appendix B.1.1.
    """
    if nesterov and momentum <= 0:
        raise ValueError(
            f"optimizer.nesterov=true needs optimizer.momentum above 0, and it is {momentum}: "
            "set optimizer.momentum=0.9 or optimizer.nesterov=false."
        )
    groups = parameter_groups(
        model,
        weight_decay=weight_decay,
        decay_bias_and_norm=decay_bias_and_norm,
        lr=lr,
        layer_decay=layer_decay,
    )
    optimizer = torch.optim.SGD(
        groups,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        nesterov=nesterov,
        fused=_can_fuse(groups),
    )
    return _unscaled_by_the_loop(optimizer)


@check_ranges
def lamb(
    model: nn.Module,
    *,
    lr: PositiveFloat,
    weight_decay: NonNegativeFloat,
    beta1: BelowOne = 0.9,
    beta2: BelowOne = 0.999,
    eps: PositiveFloat = 1e-6,
    max_grad_norm: PositiveFloat | None = 1.0,
    decay_bias_and_norm: bool = False,
    layer_decay: PositiveFraction | None = None,
) -> torch.optim.Optimizer:
    """Adam steps rescaled per tensor by |w| / |step|, so that large batches bear large rates.

    Parameters without weight decay are not rescaled. `max_grad_norm` is the clip by global norm that belongs
    to the usual implementation (FusedLAMB, timm), applied beside the recipe's `clip_grad_norm`; null turns it
    off. The A1 procedure runs LAMB at lr 5e-3, weight decay 0.01, batch 2048.
    Source: arXiv 1904.00962; timm optim/lamb.py; arXiv 2110.00476.
    """
    from timm.optim import Lamb

    groups = parameter_groups(
        model,
        weight_decay=weight_decay,
        decay_bias_and_norm=decay_bias_and_norm,
        lr=lr,
        layer_decay=layer_decay,
    )
    optimizer: torch.optim.Optimizer = Lamb(
        groups,
        lr=lr,
        betas=(beta1, beta2),
        eps=eps,
        weight_decay=weight_decay,
        max_grad_norm=max_grad_norm,
    )
    return optimizer


def _can_fuse(groups: list[dict[str, Any]]) -> bool | None:
    """True where torch has one kernel for the whole step; None leaves the choice (foreach, loop) to torch."""
    parameters = [parameter for group in groups for parameter in group["params"]]
    if all(p.device.type in {"cpu", "cuda"} and p.is_floating_point() for p in parameters):
        return True
    return None


def _unscaled_by_the_loop(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Let the training loop, not the fused kernel, divide out the loss scale of mixed precision.

    torch marks a fused optimiser as undoing the scale inside its step. Lightning then refuses to clip
    gradients, under bf16 too, where there is no scale at all, and both papers clip at norm 1.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer
