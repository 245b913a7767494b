"""Parameters, gradients and optimiser state of a model shared out over processes: FSDP2 (torch's `fully_shard`).

Each process keeps a part of every tensor, and has a block whole only while it is computed. Precision is autocast's, as
without sharding, and BatchNorm sees the batch of its process, as in the papers' code. What would need whole tensors
between the steps is refused: LAMB's ratio of norms, averages of weights, the scaled loss of float16.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._composable.checkpoint_activation import checkpoint as recompute
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD, Adam, AdamW, Optimizer

from mixer_lightning.engine.machine import Machine

#: They take each number for itself, so that a part of a tensor is as good as the whole.
ELEMENTWISE = (Adam, AdamW, SGD)


def refuse_what_needs_whole_tensors(
    machine: Machine, model: nn.Module, optimizer: Optimizer, *, ema_decay: float | None, callbacks: list[str]
) -> None:
    """See that a training is the same when its tensors are shared out.

    Raises:
        ValueError: it would not be.
    """
    if machine.activation_checkpointing:
        _refuse_counting_twice(model)
    if not machine.fully_shard:
        return
    if type(optimizer) not in ELEMENTWISE:
        raise ValueError(
            f"trainer=fsdp: optimizer {type(optimizer).__name__} takes norms of whole tensors, of which a process has "
            "a part: use optimizer=adamw, adam or sgd, or trainer=ddp"
        )
    if ema_decay is not None:
        raise ValueError("trainer=fsdp keeps no average of the weights: use ema_decay=null, or trainer=ddp")
    if callbacks:
        raise ValueError(
            f"trainer=fsdp: callbacks.{callbacks[0]} saves or averages weights by itself, which are shared out: use "
            "trainer=ddp, or leave it out"
        )
    if machine.chosen_precision == "16-mixed":
        raise ValueError(
            "trainer=fsdp does not scale a float16 loss: use trainer.precision=bf16-mixed or 32-true"
        )
    if machine.compile or machine.channels_last:
        what = "compile" if machine.compile else "channels_last"
        raise ValueError(
            f"trainer.{what}=true is not for shared-out parameters: use trainer=ddp, or leave it out"
        )


def _refuse_counting_twice(model: nn.Module) -> None:
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise ValueError(
            "trainer.activation_checkpointing computes blocks twice, and BatchNorm would count every batch twice: "
            "it is for models without BatchNorm"
        )
    if not blocks_of(model):
        raise ValueError(
            f"trainer.activation_checkpointing: {type(model).__name__} does not say what its blocks are (`blocks`, or "
            "`stages` of them)"
        )


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The repeated parts of a backbone, in their order: `blocks`, or those of its `stages` as timm names them."""
    stages = getattr(model, "stages", None) or getattr(model, "layers", None)
    within = [getattr(stage, "blocks", None) for stage in stages or []]
    lists = [getattr(model, "blocks", None), *within]
    found = [each for each in lists if isinstance(each, nn.Sequential | nn.ModuleList)]
    return [block for each in found for block in each]


def recompute_blocks(model: nn.Module) -> None:
    """Keep of each block its input alone; the rest is computed anew, with the same random draws, for the gradient."""
    for block in blocks_of(model):
        recompute(block)


def shard(model: nn.Module, mesh: Any) -> None:
    """Share the parameters of a model out over the processes of a mesh, block by block."""
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def skeleton(model: nn.Module) -> nn.Module:
    """A model without the numbers of its tensors."""
    return copy.deepcopy(model).to("meta")


def whole_copy(model: nn.Module, bare: nn.Module, device: torch.device) -> nn.Module:
    """A model whose parameters are shared out, whole on every process; all call it together."""
    plain = copy.deepcopy(bare).to_empty(device=device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            plain.get_parameter(name).copy_(whole(parameter))
        for name, buffer in model.named_buffers():
            plain.get_buffer(name).copy_(buffer)
    return plain


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be shared out, whole on every process; all call it together."""
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor


def is_shared_out(tensor: Tensor) -> bool:
    """Whether each process has a part of it."""
    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process has."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor shared out as a parameter of its shape is; as it is where that is whole too."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    on_device = tensor.to(parameter.device)
    return distribute_tensor(on_device, parameter.device_mesh, parameter.placements, src_data_rank=None)
