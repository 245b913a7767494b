"""Which parameters are trained, which of them decay, and at what rate the layers learn."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from torch import nn

from mixer_lightning.screen import did_you_mean

BACKBONE = "backbone"  # all but the head
#: Layers of models that do not say themselves, as timm's `group_parameters` takes them: a block each, of one level or
#: in stages as in timm's ConvNeXt. What is between stages belongs to the block after it, a norm to the one before.
BLOCKS = [
    (r"^stages\.(\d+)\.downsample", (0,)),
    (r"^stages\.(\d+)\.blocks\.(\d+)", None),
    (r"^blocks\.(\d+)", None),
    (r"^norm", (99999,)),
]


def freeze(model: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """Take parts of a backbone out of training; returns them, to be kept in evaluation mode.

    `names` are submodules (`stem`, `blocks.0`), or `backbone`: all but the head, which leaves a linear probe. Frozen
    BatchNorm keeps its statistics, and frozen blocks drop no branches, only while they are in evaluation mode.

    Raises:
        ValueError: there is no such submodule, or a linear probe of a model whose head has no parameters.
    """
    modules, head_name = dict(model.named_modules()), str(model.head_name)
    frozen: list[nn.Module] = []
    for name in names:
        if name == BACKBONE:
            frozen += _beside(model, head_name)
        elif name in modules and name:
            frozen.append(modules[name])
        else:
            children = ", ".join(key for key, _ in model.named_children())
            raise ValueError(
                f"freeze: no part '{name}'{did_you_mean(name, list(modules))}; parts: backbone, {children}"
            )
    for module in frozen:
        module.requires_grad_(False)
    if BACKBONE in names and not any(True for _ in model.get_submodule(head_name).parameters()):
        parts = ", ".join(key for key, _ in model.named_children() if key != head_name)
        raise ValueError(
            f"freeze: the head of this model has nothing to train, so backbone leaves nothing: name parts ({parts})"
        )
    return frozen


def _beside(model: nn.Module, head_name: str) -> list[nn.Module]:
    """All modules but the head and those that it stands in, whose own parameters (class tokens) are frozen here."""
    first, _, rest = head_name.partition(".")
    for parameter in model.parameters(recurse=False):
        parameter.requires_grad_(False)
    children = [child for key, child in model.named_children() if key != first]
    return children + (_beside(model.get_submodule(first), rest) if rest else [])


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    decay_bias_and_norm: bool,
    lr: float = 1.0,
    layer_decay: float | None = None,
) -> list[dict[str, Any]]:
    """The trainable parameters as optimiser groups, biases and normalisation scales undecayed.

    A parameter with at most one axis (every bias, every LayerNorm and BatchNorm scale) gets weight decay 0
    unless `decay_bias_and_norm`, and so does what the model itself names in `no_weight_decay()`: class tokens and
    position embeddings of a DeiT, position biases of a Swin, ResMLP's and NFNet's scales of several axes. On a Mixer
    this is big_vision's rule `.*/kernel` (configs/mlp_mixer_i1k.py leaves `wd_mults` at that default), on timm's models
    timm's (optim/_param_groups.py: `param.ndim <= 1` and that list).

    With `layer_decay` the head learns at `lr` and each layer below at that fraction of the rate of the one above it
    (ELECTRA, arXiv 2003.10555; BEiT, arXiv 2106.08254), layers as in timm's `param_groups_layer_decay`: the stem, each
    block, the head; a norm after the blocks belongs to the last.

    Returns dicts with `params` and `weight_decay`, and `lr` where layers differ: the lowest layer first, of one layer
    the decayed first, no empty ones.
    Raises ValueError when nothing in the model can be trained, or `layer_decay` is not in (0, 1] or finds no layers.
    """
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise ValueError(f"optimizer.layer_decay={layer_decay} is not in (0, 1]: null turns it off")
    layers = layer_numbers(model) if layer_decay is not None else {}
    top = max(layers.values(), default=0)
    named: Any = getattr(model, "no_weight_decay", set)
    undecayed = named()
    groups: dict[tuple[int, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_undecayed = not decay_bias_and_norm and (parameter.ndim <= 1 or name in undecayed)
            groups[layers.get(name, 0), is_undecayed].append(parameter)
    if not groups:
        raise ValueError("The model has no parameter with requires_grad=True: unfreeze at least its head.")
    return [
        {
            "params": groups[layer, is_undecayed],
            "weight_decay": 0.0 if is_undecayed else weight_decay,
            **({} if layer_decay is None else {"lr": lr * layer_decay ** (top - layer)}),
        }
        for layer, is_undecayed in sorted(groups)
    ]


def layer_numbers(model: nn.Module) -> dict[str, int]:
    """The number of every parameter's layer, from the input: by the model's `group_matcher`, or `stem` and `BLOCKS`.

    Raises:
        ValueError: neither tells the layers of this model apart.
    """
    from timm.models import group_parameters

    theirs: Any = getattr(model, "group_matcher", None)
    matcher = {"stem": r"^stem", "blocks": BLOCKS} if theirs is None else theirs(coarse=False)
    numbers: dict[str, int] = group_parameters(model, matcher, reverse=True)
    if theirs is None and len(set(numbers.values())) < 3:  # at most the stem, and all else
        raise ValueError(
            f"optimizer.layer_decay: {type(model).__name__} does not say what its layers are (`stem` and `blocks`, or "
            "a method `group_matcher` as timm's models have): use optimizer.layer_decay=null"
        )
    return numbers
