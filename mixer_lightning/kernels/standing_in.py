"""When a kernel may stand in for modules of PyTorch."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def may_stand_in(x: Tensor, modules: Iterable[nn.Module]) -> bool:
    """Whether a kernel can take x on the CPU through the modules: nobody traces them or watches what is between.

    A compiler does better with the operations than with a call that it cannot look into, and an exported or traced
    model must not refer to this machine.
    """
    return (
        type(x) is Tensor  # no tensor of another kind that only looks like one
        and x.is_cpu
        and x.dtype in (torch.float32, torch.bfloat16)
        and (x.dtype == torch.float32 or torch.is_autocast_enabled("cpu"))
        and not torch.compiler.is_compiling()
        and not torch._C._is_tracing()
        and not any(_has_hooks(module) for module in modules)
    )


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
