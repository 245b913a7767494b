"""An activation, the BatchNorm behind it and what is added to both, in one pass on a CPU.

ConvMixer's layers are Conv, activation, BatchNorm. By PyTorch's own operations the last two read and write their maps
13 times in a training step, which takes half of the step on a CPU; csrc/activation_norm.cpp does it in 8, keeps one
map less for the backward pass, and gives the same results up to rounding. The residual connection around such a layer
is added in the same pass, and evaluations take one pass in place of three. It is compiled when it is first needed;
without a C++ compiler, and for everything but float32 or bfloat16 on a CPU, PyTorch's operations do it.

    B images   C channels   H, W sides
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixer_lightning.kernels import extension
from mixer_lightning.kernels.standing_in import may_stand_in, plain_gradients


class Sequential(nn.Sequential):
    """nn.Sequential that takes each pair of GELU or ReLU and BatchNorm2d at once where that is faster."""

    def forward(self, input: Tensor, plus: Tensor | None = None) -> Tensor:
        """[B, C, H, W] -> what the last module gives; to it `plus` is added, which has its shape."""
        x, modules, at = input, list(self), 0
        while at < len(modules):
            pair = modules[at : at + 2]
            if is_fused(x, pair):
                at += 2
                added = plus if at == len(modules) and _is_like(plus, x) else None
                x = fused(x, *pair, plus=added)  # type: ignore[arg-type]
                plus = plus if added is None else None
            else:
                x = modules[at](x)
                at += 1
        return x if plus is None else x + plus


def _is_like(plus: Tensor | None, x: Tensor) -> bool:
    return plus is not None and plus.shape == x.shape and plus.dtype == x.dtype and may_stand_in(plus, ())


def is_fused(x: Tensor, modules: list[nn.Module]) -> bool:
    """Whether `fused` can stand for two modules, trained or evaluated, with nobody watching what is between them."""
    if not (len(modules) == 2 and may_stand_in(x, modules) and x.dim() == 4):
        return False
    sigma, norm = modules
    return (
        (type(sigma) is nn.ReLU or (type(sigma) is nn.GELU and sigma.approximate == "none"))
        and type(norm) is nn.BatchNorm2d
        and norm.training == torch.is_grad_enabled()
        and norm.affine
        and norm.track_running_stats
        and norm.running_mean is not None
        and all(
            each.dtype == torch.float32 and each.is_contiguous()
            for each in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
            if each is not None
        )
        and x.shape[1] == norm.num_features
        and x.numel() > x.shape[1]  # one value per channel: PyTorch says what is wrong
        and native() is not None
    )


def fused(x: Tensor, sigma: nn.Module, norm: nn.BatchNorm2d, *, plus: Tensor | None = None) -> Tensor:
    """norm(sigma(x)) [+ plus] of x [B, C, H, W]; in training its running statistics are renewed as PyTorch does it."""
    assert norm.num_batches_tracked is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gelu = isinstance(sigma, nn.GELU)
    if not norm.training:
        return _evaluated(x, norm, plus, gelu)
    y, mean, variance = _ActivationNorm.apply(_in_order(x), norm.weight, norm.bias, plus, gelu, norm.eps)
    count = x.numel() // x.shape[1]
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        norm.running_mean.mul_(1 - share).add_(mean, alpha=share)
        norm.running_var.mul_(1 - share).add_(variance, alpha=share * count / (count - 1))
    normalised: Tensor = y
    return normalised


def _evaluated(x: Tensor, norm: nn.BatchNorm2d, plus: Tensor | None, gelu: bool) -> Tensor:
    """By the running statistics."""
    kernel = native()
    assert kernel is not None
    x, plus = _in_order(x), None if plus is None else _in_order(plus)
    y = torch.empty_like(x)
    kernel.evaluate(
        *_pointers([x, norm.weight, norm.bias, norm.running_mean, norm.running_var, plus, y]),
        gelu, *_sizes(x), norm.eps, torch.get_num_threads(),
    )  # fmt: skip
    return y


class _ActivationNorm(torch.autograd.Function):
    """(y, mean, variance): y = weight (sigma(x) - mean) / sqrt(variance + eps) + bias [+ plus], [C] over B, H, W."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, plus: Tensor | None, gelu: bool, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        plus = None if plus is None else _in_order(plus)
        y, mean, variance = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
        kernel = native()
        assert kernel is not None
        kernel.forward(
            *_pointers([x, weight, bias, plus, y, mean, variance]),
            gelu, *_sizes(x), eps, torch.get_num_threads(),
        )  # fmt: skip
        ctx.save_for_backward(x, weight, bias, mean, variance)
        ctx.gelu, ctx.eps = gelu, eps
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    def backward(
        ctx: Any, g: Tensor, *_: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight, bias, mean, variance = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        if torch.is_grad_enabled():
            sigma = F.gelu if ctx.gelu else F.relu

            def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
                return F.batch_norm(sigma(x), None, None, weight, bias, training=True, eps=ctx.eps)

            dx, dweight, dbias = plain_gradients(plain, (x, weight, bias), wanted[:3], g)
            return dx, dweight, dbias, g if wanted[3] else None, None, None
        plus_gradient = g if wanted[3] else None
        g = _in_order(g.to(x.dtype))
        dx, dweight, dbias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
        kernel = native()
        assert kernel is not None
        kernel.backward(
            *_pointers([x, g, weight, mean, variance, dx, dweight, dbias]),
            ctx.gelu, *_sizes(x), ctx.eps, torch.get_num_threads(),
        )  # fmt: skip
        return (
            dx if wanted[0] else None,
            dweight if wanted[1] else None,
            dbias if wanted[2] else None,
            plus_gradient,
            None,
            None,
        )


def _in_order(x: Tensor) -> Tensor:
    """[B, C, H, W] with the channels of a position side by side in memory."""
    return x.contiguous(memory_format=torch.channels_last)


def _pointers(tensors: Iterable[Tensor | None]) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def _sizes(x: Tensor) -> tuple[bool, int, int]:
    """Whether it is bfloat16, its positions, its channels."""
    return x.dtype == torch.bfloat16, x.numel() // x.shape[1], x.shape[1]


class Native(NamedTuple):
    """The functions of csrc/activation_norm.cpp."""

    forward: Any
    backward: Any
    evaluate: Any


@functools.cache
def native() -> Native | None:
    """The compiled kernel; None where no C++ compiler builds a library that loads."""
    library = extension.load("activation_norm")
    if library is None:
        return None
    pointer, layout = (
        ctypes.c_void_p,
        [ctypes.c_bool] * 2 + [ctypes.c_long] * 2 + [ctypes.c_double, ctypes.c_int],
    )
    return Native(
        extension.function(library, "activation_norm_forward", [pointer] * 7 + layout),
        extension.function(library, "activation_norm_backward", [pointer] * 8 + layout),
        extension.function(library, "activation_norm_evaluate", [pointer] * 7 + layout),
    )
