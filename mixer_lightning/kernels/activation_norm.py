"""An activation and the BatchNorm behind it, trained in one pass on a CPU.

ConvMixer's layers are Conv, activation, BatchNorm. By PyTorch's own operations the last two read and write their maps
13 times in a training step, which takes half of the step on a CPU; csrc/activation_norm.cpp does it in 8, keeps one
map less for the backward pass, and gives the same results up to rounding. It is compiled when it is first needed;
without a C++ compiler, and for everything but training in float32 or bfloat16 on a CPU, PyTorch's operations do it.

    B images   C channels   H, W sides
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mixer_lightning.kernels import extension


class Sequential(nn.Sequential):
    """nn.Sequential that takes each pair of GELU or ReLU and BatchNorm2d at once where that is faster."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] -> what the last module gives."""
        x, modules, at = input, list(self), 0
        while at < len(modules):
            pair = modules[at : at + 2]
            if is_fused(x, pair):
                x = fused(x, *pair)  # type: ignore[arg-type]
                at += 2
            else:
                x = modules[at](x)
                at += 1
        return x


def is_fused(x: Tensor, modules: list[nn.Module]) -> bool:
    """Whether `fused` can stand for two modules in training, with nobody watching what is between them."""
    if not (len(modules) == 2 and x.is_cpu and x.dim() == 4 and torch.is_grad_enabled()):
        return False
    sigma, norm = modules
    return (
        (isinstance(sigma, nn.ReLU) or (isinstance(sigma, nn.GELU) and sigma.approximate == "none"))
        and type(norm) is nn.BatchNorm2d
        and norm.training
        and norm.affine
        and norm.running_mean is not None
        and norm.weight.dtype == norm.running_mean.dtype == torch.float32
        and x.dtype in (torch.float32, torch.bfloat16)
        and (x.dtype == torch.float32 or torch.is_autocast_enabled("cpu"))
        and x.shape[1] == norm.num_features
        and x.numel() > x.shape[1]  # one value per channel: PyTorch says what is wrong
        and not torch.compiler.is_compiling()
        and not any(_has_hooks(module) for module in modules)
        and native() is not None
    )


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def fused(x: Tensor, sigma: nn.Module, norm: nn.BatchNorm2d) -> Tensor:
    """norm(sigma(x)) of x [B, C, H, W] in training, its running statistics renewed as PyTorch does it."""
    assert norm.num_batches_tracked is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    y, mean, variance = _ActivationNorm.apply(x, norm.weight, norm.bias, isinstance(sigma, nn.GELU), norm.eps)
    count = x.numel() // x.shape[1]
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        norm.running_mean.mul_(1 - share).add_(mean, alpha=share)
        norm.running_var.mul_(1 - share).add_(variance, alpha=share * count / (count - 1))
    normalised: Tensor = y
    return normalised


class _ActivationNorm(torch.autograd.Function):
    """(y, mean, variance): y = weight (sigma(x) - mean) / sqrt(variance + eps) + bias, both [C] over B, H and W."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, gelu: bool, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = x.contiguous(memory_format=torch.channels_last)
        y, mean, variance = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
        kernel = native()
        assert kernel is not None
        kernel.forward(
            x.data_ptr(), weight.data_ptr(), bias.data_ptr(), y.data_ptr(), mean.data_ptr(), variance.data_ptr(),
            gelu, x.dtype == torch.bfloat16, x.numel() // x.shape[1], x.shape[1], eps, torch.get_num_threads(),
        )  # fmt: skip
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.gelu, ctx.eps = gelu, eps
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, g: Tensor, *_: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight, mean, variance = ctx.saved_tensors
        g = g.to(x.dtype).contiguous(memory_format=torch.channels_last)
        dx, dweight, dbias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
        kernel = native()
        assert kernel is not None
        kernel.backward(
            x.data_ptr(), g.data_ptr(), weight.data_ptr(), mean.data_ptr(), variance.data_ptr(), dx.data_ptr(),
            dweight.data_ptr(), dbias.data_ptr(), ctx.gelu, x.dtype == torch.bfloat16,
            x.numel() // x.shape[1], x.shape[1], ctx.eps, torch.get_num_threads(),
        )  # fmt: skip
        wanted = ctx.needs_input_grad
        return (
            dx if wanted[0] else None,
            dweight if wanted[1] else None,
            dbias if wanted[2] else None,
            None,
            None,
        )


class Native(NamedTuple):
    """The functions of csrc/activation_norm.cpp."""

    forward: Any
    backward: Any


@functools.cache
def native() -> Native | None:
    """The compiled kernel; None where no C++ compiler builds a library that loads."""
    library = extension.load("activation_norm")
    if library is None:
        return None
    pointer, flags = ctypes.c_void_p, [ctypes.c_bool] * 2
    sizes = [ctypes.c_long] * 2 + [ctypes.c_double, ctypes.c_int]
    kernel = Native(library.activation_norm_forward, library.activation_norm_backward)
    kernel.forward.restype = kernel.backward.restype = None
    kernel.forward.argtypes = [pointer] * 6 + flags + sizes
    kernel.backward.argtypes = [pointer] * 8 + flags + sizes
    return kernel
