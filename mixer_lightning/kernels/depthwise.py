"""Depthwise convolution whose gradients are fast on a CPU.

PyTorch's own weight gradient of a depthwise convolution runs at a few percent of the speed of its forward pass, and
most of a ConvMixer training step on a CPU goes there. Here

* the input gradient is a forward convolution with the flipped kernel, which PyTorch does at full speed;
* the gradients of weight and bias are C++ that keeps a row of the kernel in registers (csrc/depthwise.cpp). It is
  compiled when it is first needed (a second, once per machine) where there is a C++ compiler; elsewhere the plain
  reference in PyTorch is used.

    B batch   C channels   H, W sides of x   h, w sides of the output   kh, kw sides of the kernel
    pads (left, right, top, bottom), the order of torch.nn.functional.pad
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixer_lightning.kernels import extension
from mixer_lightning.kernels.standing_in import is_computed, plain_gradients

Pads = tuple[int, int, int, int]
Padding = int | tuple[int, int] | Literal["same", "valid"]


class DepthwiseConv2d(nn.Conv2d):
    """nn.Conv2d(dim, dim, kernel_size, groups=dim) of stride 1: same parameters, initialisation and results."""

    def __init__(
        self,
        dim: int,
        kernel_size: int,
        *,
        padding: int | Literal["same", "valid"] = "same",
        bias: bool = True,
    ) -> None:
        super().__init__(dim, dim, kernel_size, groups=dim, padding=padding, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, h, w]."""
        return depthwise_conv2d(input, self.weight, self.bias, padding=self.padding)  # type: ignore[arg-type]


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, *, padding: Padding = "same") -> Tensor:
    """F.conv2d(x, weight, bias, padding=padding, groups=C) of x [B, C, H, W] and weight [C, 1, kh, kw].

    Training on a CPU in float32 or bfloat16 uses the fast gradients; anything else is F.conv2d itself.
    """
    if not (
        (torch.compiler.is_compiling() or is_computed(x))
        and x.is_cpu
        and torch.is_grad_enabled()
        and x.dim() == 4
        and weight.shape[:2] == (x.shape[1], 1)
    ):
        return F.conv2d(x, weight, bias, padding=padding, groups=x.shape[1])
    autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
    tensors = [t for t in (x, weight, bias) if t is not None]
    if (
        not any(t.requires_grad for t in tensors)
        or dtype not in (torch.float32, torch.bfloat16)
        or not (autocast or all(t.dtype == dtype for t in tensors))
    ):
        return F.conv2d(x, weight, bias, padding=padding, groups=x.shape[1])
    y: Tensor = _Depthwise.apply(x.to(dtype), weight, bias, _pads(padding, *weight.shape[2:]))
    return y


class _Depthwise(torch.autograd.Function):
    """y[b, c, m, n] = bias[c] + sum over i, j of weight[c, 0, i, j] * x[b, c, m + i - top, n + j - left]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, pads: Pads) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.pads = pads
        return _convolve(x, weight.to(x.dtype), _to(bias, x), pads)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight, bias = ctx.saved_tensors
        if torch.is_grad_enabled():
            dx, dw, db = plain_gradients(
                lambda x, weight, bias: _convolve(x, weight.to(x.dtype), _to(bias, x), ctx.pads),
                (x, weight, bias), ctx.needs_input_grad[:3], g,
            )  # fmt: skip
            return dx, dw, db, None
        left, right, top, bottom = ctx.pads
        kh, kw = weight.shape[2:]
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            # every y[m] holds x[m + i - top] w[i], so dx[m] = sum of g[m + top - i] w[i]: a convolution again
            pads = (kw - 1 - left, kw - 1 - right, kh - 1 - top, kh - 1 - bottom)
            with torch.autocast("cpu", enabled=False):  # in the precision of the forward pass
                dx = _convolve(g, weight.to(g.dtype).flip(2, 3), None, pads)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            dw, db = weight_gradients(x, g, kh, kw, top, left)
            dw, db = (
                torch.empty_like(weight).copy_(dw),
                db.to(weight.dtype),
            )  # DDP expects the weight's strides
        return dx, dw, db if ctx.needs_input_grad[2] else None, None


def _to(bias: Tensor | None, x: Tensor) -> Tensor | None:
    return None if bias is None else bias.to(x.dtype)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, pads: Pads) -> Tensor:
    left, right, top, bottom = pads
    if left == right >= 0 and top == bottom >= 0:
        return F.conv2d(x, weight, bias, padding=(top, left), groups=x.shape[1])
    return F.conv2d(F.pad(x, pads), weight, bias, groups=x.shape[1])  # negative pads cut


def _pads(padding: Padding, kh: int, kw: int) -> Pads:
    """With "same" as PyTorch does it, which pads an even kernel by one more on the right and below."""
    if padding == "same":
        return (kw - 1) // 2, kw // 2, (kh - 1) // 2, kh // 2
    if padding == "valid":
        return 0, 0, 0, 0
    assert not isinstance(padding, str)
    down, across = (padding, padding) if isinstance(padding, int) else padding
    return across, across, down, down


# ------------------------------------------------------------------------------- gradients of weight and bias


@torch.library.custom_op("mixer_lightning::depthwise_weight_gradients", mutates_args=())
def weight_gradients(x: Tensor, g: Tensor, kh: int, kw: int, top: int, left: int) -> tuple[Tensor, Tensor]:
    """(dw, db) from x [B, C, H, W] and the output's gradient g [B, C, h, w], both float32 or both bfloat16.

    dw[c, 0, i, j] = sum over b, m, n of g[b, c, m, n] * x[b, c, m + i - top, n + j - left], outside x zero;
    db[c] = sum over b, m, n of g[b, c, m, n]. Both are float32, and bitwise equal for any number of threads. A
    custom operator, so that torch.compile does not trace into it.
    """
    native = native_weight_gradients()
    if native is None:
        return plain_weight_gradients(x, g, kh, kw, top, left)
    x, g = (t.contiguous(memory_format=torch.channels_last) for t in (x, g))
    B, C, H, W = x.shape
    h, w = g.shape[2:]
    out = torch.empty(B, kh * kw + 1, C, dtype=torch.float32, device=x.device)
    native(
        x.data_ptr(), g.data_ptr(), out.data_ptr(), x.dtype == torch.bfloat16,
        B, C, H, W, h, w, kh, kw, top, left, torch.get_num_threads(),
    )  # fmt: skip
    dw, db = torch.split(out.sum(0), [kh * kw, 1])  # [kh * kw, C], [1, C]
    return dw.t().contiguous().view(C, 1, kh, kw), db[0].clone()


@weight_gradients.register_fake
def _(x: Tensor, g: Tensor, kh: int, kw: int, top: int, left: int) -> tuple[Tensor, Tensor]:
    C = x.shape[1]
    return x.new_empty(C, 1, kh, kw, dtype=torch.float32), x.new_empty(C, dtype=torch.float32)


def plain_weight_gradients(
    x: Tensor, g: Tensor, kh: int, kw: int, top: int, left: int
) -> tuple[Tensor, Tensor]:
    """`weight_gradients` in PyTorch: each map of x [H, W] is convolved with its map of g [h, w] as the kernel."""
    B, C, H, W = x.shape
    h, w = g.shape[2:]
    x = F.pad(x, (left, w + kw - 1 - W - left, top, h + kh - 1 - H - top))  # negative pads cut
    maps = F.conv2d(x.reshape(1, B * C, *x.shape[2:]), g.reshape(B * C, 1, h, w), groups=B * C)
    dw = maps.view(B, C, kh, kw).sum(0, dtype=torch.float32).unsqueeze(1)
    return dw, g.sum(dim=(0, 2, 3), dtype=torch.float32)


@functools.cache
def native_weight_gradients() -> Any | None:
    """`depthwise_weight_gradients` of csrc/depthwise.cpp; None where no C++ compiler builds a library that loads."""
    library = extension.load("depthwise")
    if library is None:
        return None
    arguments = [ctypes.c_void_p] * 3 + [ctypes.c_bool] + [ctypes.c_long] * 10 + [ctypes.c_int]
    return extension.function(library, "depthwise_weight_gradients", arguments)
