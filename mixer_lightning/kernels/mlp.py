"""The MLPs of a Mixer layer, over channels and over tokens, as fast as their matrix products on a CPU.

By PyTorch's own operations a token-mixing MLP copies its input and its output transposed, adds its biases and takes
GELU in passes of their own, and so back again: a third of a training step on a CPU. Here the token mixing multiplies
from the left, so that nothing is transposed; csrc/mlp.cpp takes bias and GELU in one pass, and their gradients in one;
and the residual is what the second product is added to. It is compiled when it is first needed; without a C++
compiler, and elsewhere than in float32 or bfloat16 on a CPU, PyTorch's operations do it.

    B images   S tokens   C channels   D hidden width: Ds of the token mixing, Dc of the channel mixing
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixer_lightning.kernels import extension
from mixer_lightning.kernels.standing_in import may_stand_in, plain_gradients


def mlp(
    x: Tensor, fc1: nn.Linear, fc2: nn.Linear, *, over_tokens: bool = False, plus: Tensor | None = None
) -> Tensor:
    """W2 gelu(W1 x + b1) + b2 [+ plus], with the tanh form of GELU, over the channels of each token or the reverse.

    Args:
        x: [B, S, C].
        fc1: W1 and b1.
        fc2: W2 and b2.
        over_tokens: W1 and W2 mix the tokens of each channel, else the channels of each token.
        plus: added to the result, whose shape it has.
    """
    if not _is_fused(x, fc1, fc2):
        return plain_mlp(x, fc1, fc2, over_tokens=over_tokens, plus=plus)
    x = x.to(_dtype(x)).contiguous()
    added = plus if plus is not None and (plus.dtype, plus.shape) == (x.dtype, x.shape) else None
    parameters = (fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    y: Tensor = _Mlp.apply(x, *parameters, added, over_tokens, torch.is_grad_enabled())
    return y if plus is None or added is not None else plus + y


def plain_mlp(
    x: Tensor, fc1: nn.Linear, fc2: nn.Linear, *, over_tokens: bool = False, plus: Tensor | None = None
) -> Tensor:
    """`mlp` by PyTorch's operations."""
    y: Tensor = fc2(F.gelu(fc1(x.mT if over_tokens else x), approximate="tanh"))
    y = y.mT if over_tokens else y
    return y if plus is None else plus + y


def _plain(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, *, over_tokens: bool) -> Tensor:
    w1, b1, w2, b2 = (each.to(x.dtype) for each in (w1, b1, w2, b2))
    y = F.linear(F.gelu(F.linear(x.mT if over_tokens else x, w1, b1), approximate="tanh"), w2, b2)
    return y.mT if over_tokens else y


def _dtype(x: Tensor) -> torch.dtype:
    """That of products with x."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def _is_fused(x: Tensor, *layers: nn.Linear) -> bool:
    """Whether `_Mlp` can stand for the two layers."""
    return (
        may_stand_in(x, layers)
        and x.dim() == 3
        and x.numel() > 0
        and _dtype(x) in (torch.float32, torch.bfloat16)
        and all(type(layer) is nn.Linear and layer.bias is not None for layer in layers)
        and all(
            type(p) is nn.Parameter and p.dtype == torch.float32 and p.is_contiguous()
            for each in layers
            for p in each.parameters()
        )
        and native() is not None
    )


class _Mlp(torch.autograd.Function):
    """y = W2 a + b2 [+ plus], a = gelu(h + b1), h = W1 x.

    Over channels these are rows times transposed weights, [B S, C] -> [B S, Dc] -> [B S, C]; over tokens they are the
    weights times the tokens of each image, [S, C] -> [Ds, C] -> [S, C].
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w1: Tensor,
        b1: Tensor,
        w2: Tensor,
        b2: Tensor,
        plus: Tensor | None,
        over_tokens: bool,
        is_training: bool,  # here gradients are off in any case
    ) -> Tensor:
        inputs = (x, w1, b1, w2, b2)
        shape, x = x.shape, x if over_tokens else x.flatten(0, 1)
        w1, w2, b2 = (each.to(x.dtype) for each in (w1, w2, b2[:, None] if over_tokens else b2))
        with torch.autocast("cpu", enabled=False):
            h = _left(w1, x) if over_tokens else x @ w1.t()
            a = torch.empty_like(h) if is_training and any(ctx.needs_input_grad) else h
            _gelu(h, b1, a)
            y = torch.empty_like(x)
            y.copy_(b2) if plus is None else torch.add(plus.reshape(x.shape), b2, out=y)
            y.baddbmm_(_of_each(w2, x), a) if over_tokens else y.addmm_(a, w2.t())
        ctx.save_for_backward(*inputs, w1, w2, h, a)
        ctx.over_tokens = over_tokens
        return y.view(shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, w1, w2, h, a = ctx.saved_tensors
        wanted, over_tokens = ctx.needs_input_grad, ctx.over_tokens
        if torch.is_grad_enabled():
            plain = functools.partial(_plain, over_tokens=over_tokens)
            gradients = plain_gradients(plain, inputs, wanted[:5], gradient)
            return *gradients, gradient if wanted[5] else None, None, None
        x, _, b1, *_ = inputs
        x = x if over_tokens else x.flatten(0, 1)
        dx = dw1 = dw2 = db2 = None
        with torch.autocast("cpu", enabled=False):
            g = gradient.to(x.dtype).contiguous().view(x.shape)
            dh = _left(w2.t(), g) if over_tokens else g @ w2  # of a, at first
            db1 = torch.empty_like(b1)
            _gelu_backward(h, b1, dh, db1)
            if wanted[0]:
                dx = (_left(w1.t(), dh) if over_tokens else dh @ w1).view(gradient.shape)
            if wanted[1]:
                dw1 = _outer(dh, x) if over_tokens else (dh.t() @ x).float()
            if wanted[3]:
                dw2 = _outer(g, a) if over_tokens else (g.t() @ a).float()
            if wanted[4]:
                db2 = g.sum((0, 2) if over_tokens else 0, dtype=torch.float32)
        return dx, dw1, db1 if wanted[2] else None, dw2, db2, gradient if wanted[5] else None, None, None


def _of_each(weight: Tensor, x: Tensor) -> Tensor:
    """One and the same matrix for each image of x."""
    return weight.expand(len(x), -1, -1)


def _left(weight: Tensor, x: Tensor) -> Tensor:
    """[O, I] times x [B, I, C] -> [B, O, C]."""
    return torch.bmm(_of_each(weight, x), x)


def _outer(g: Tensor, x: Tensor) -> Tensor:
    """Gradient [O, I] of the weight of `_left`, from g [B, O, C] and x [B, I, C]."""
    return torch.bmm(g, x.mT).sum(0, dtype=torch.float32)


def _gelu(h: Tensor, bias: Tensor, a: Tensor) -> None:
    """a = gelu(h + bias)."""
    kernel = native()
    assert kernel is not None
    kernel.forward(h.data_ptr(), bias.data_ptr(), a.data_ptr(), *_layout(h, bias))


def _gelu_backward(h: Tensor, bias: Tensor, g: Tensor, dbias: Tensor) -> None:
    """The gradient g of gelu(h + bias) becomes that of h, its sums become dbias."""
    kernel = native()
    assert kernel is not None
    assert g.dtype == h.dtype
    assert g.is_contiguous()
    kernel.backward(h.data_ptr(), bias.data_ptr(), g.data_ptr(), dbias.data_ptr(), *_layout(h, bias))


def _layout(h: Tensor, bias: Tensor) -> tuple[bool | int, ...]:
    """Whether the bias is one of rows, whether h is bfloat16, its rows and columns, the bias's length, threads."""
    columns = h.shape[-1]
    of_rows, is_half = h.dim() == 3, h.dtype == torch.bfloat16
    return of_rows, is_half, h.numel() // columns, columns, len(bias), torch.get_num_threads()


class Native(NamedTuple):
    """The functions of csrc/mlp.cpp."""

    forward: Any
    backward: Any


@functools.cache
def native() -> Native | None:
    """The compiled kernel; None where no C++ compiler builds a library that loads."""
    library = extension.load("mlp")
    if library is None:
        return None
    pointer, layout = ctypes.c_void_p, [ctypes.c_bool] * 2 + [ctypes.c_long] * 3 + [ctypes.c_int]
    return Native(
        extension.function(library, "mlp_gelu_forward", [pointer] * 3 + layout),
        extension.function(library, "mlp_gelu_backward", [pointer] * 4 + layout),
    )
