"""When a kernel may stand in for modules of PyTorch, and what does where its gradients are to have gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as modules_of_torch

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def may_stand_in(x: Tensor, modules: Iterable[nn.Module]) -> bool:
    """Whether a kernel can take x on the CPU through the modules: nobody traces them or watches what is between.

    A compiler does better with the operations than with a call that it cannot look into; an exported or traced model
    must not refer to this machine; and what counts or transforms operations (torch.func, forward derivatives, dispatch
    modes) sees none in a kernel.
    """
    return (
        not torch.compiler.is_compiling()  # first: a compiler cannot ask the rest
        and is_computed(x)
        and x.is_cpu
        and x.dtype in (torch.float32, torch.bfloat16)
        and (x.dtype == torch.float32 or torch.is_autocast_enabled("cpu"))
        and not any(is_watched(module) for module in modules)
    )


def is_computed(x: Tensor) -> bool:
    """Whether x is numbers, which nobody traces, transforms or counts, and no tensor that only looks like one."""
    return (
        type(x) is Tensor
        and not torch._C._is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
        and forward_ad._current_level < 0
    )


def plain_gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor | None], wanted: Sequence[bool], gradient: Tensor
) -> list[Tensor | None]:
    """Those of function(*inputs), PyTorch's operations, that are wanted: with a graph, to be differentiated again."""
    with torch.autocast("cpu", enabled=False):  # inputs are in the precision of the forward pass
        y = function(*inputs)
        asked = [x for x, is_wanted in zip(inputs, wanted, strict=True) if is_wanted and x is not None]
        found = iter(torch.autograd.grad(y, asked, gradient.to(y.dtype), create_graph=True))
    return [next(found) if is_wanted else None for is_wanted in wanted]


def is_watched(module: nn.Module) -> bool:
    """Whether somebody is to be told of what a module gets or gives, or has put a function in its place."""
    return (
        any(getattr(module, each) for each in _HOOKS)
        or any(getattr(modules_of_torch, f"_global{each}") for each in _HOOKS)
        or "forward" in vars(module)
    )
