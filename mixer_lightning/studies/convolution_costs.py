"""Convolutions of stride 1 that keep width and size: what each costs, in closed form, and a function that runs it.

    C width = channels in and out   k side of the kernel   S side of the map, in pixels   B images

    operator          parameters             multiply-accumulates for an image
    full              k^2 C^2 + C            S^2 k^2 C^2
    depthwise         k^2 C + C              S^2 k^2 C
    pointwise         C^2 + C                S^2 C^2
    separable         their sum              their sum: depthwise, then pointwise, as in a block of ConvMixer

Every convolution has a bias, whose additions are not counted. A full one costs k^2 C / (k^2 + C) times as much as a
separable one, a depthwise one C times less than the full one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from mixer_lightning.kernels.depthwise import DepthwiseConv2d
from mixer_lightning.models.presets import Cost

#: Operators in the order of tables; `depthwise_ours` has the gradients of kernels/depthwise.py, on a CPU.
OPERATORS = ("full", "depthwise", "depthwise_ours", "pointwise", "separable")
PASSES = ("forward", "training")  # the latter forward and backward, to input and weights


class Case(NamedTuple):
    """One convolution and how it is computed."""

    operator: str
    kernel: int
    width: int
    size: int
    batch_size: int
    layout: str  # contiguous or channels_last
    precision: str  # float32 or bf16


def cost(operator: str, *, kernel: int, width: int, size: int) -> Cost:
    """Parameters, and multiply-accumulates for one image, by the formulas above."""
    k2, dim, positions = kernel**2, width, size**2
    depthwise = Cost(k2 * dim + dim, positions * k2 * dim)
    pointwise = Cost(dim**2 + dim, positions * dim**2)
    return {
        "full": Cost(k2 * dim**2 + dim, positions * k2 * dim**2),
        "depthwise": depthwise,
        "depthwise_ours": depthwise,
        "pointwise": pointwise,
        "separable": Cost(depthwise.parameters + pointwise.parameters, depthwise.macs + pointwise.macs),
    }[operator]


def convolution(operator: str, *, kernel: int, width: int) -> nn.Module:
    """The module, from [B, C, S, S] to the same shape."""
    warnings.filterwarnings("ignore", message="Using padding='same' with even kernel lengths")
    depthwise = nn.Conv2d(width, width, kernel, groups=width, padding="same")
    if operator == "full":
        return nn.Conv2d(width, width, kernel, padding="same")
    if operator == "depthwise":
        return depthwise
    if operator == "depthwise_ours":
        return DepthwiseConv2d(width, kernel)
    pointwise = nn.Conv2d(width, width, 1)
    return pointwise if operator == "pointwise" else nn.Sequential(depthwise, pointwise)


def operators(*, kernel: int, device: str) -> list[str]:
    """What there is to compare at a kernel: a pointwise convolution has k = 1 alone, our gradients are a CPU's."""
    found = ["full", "depthwise"]
    found += ["depthwise_ours"] * (device == "cpu")
    return [*found, "pointwise"] if kernel == 1 else [*found, "separable"]


def step(case: Case, mode: str, *, device: str) -> Callable[[], None]:
    """A function that runs the convolution once on random maps, forward alone or with all its gradients."""
    torch.manual_seed(0)
    layout = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}[case.layout]
    module = convolution(case.operator, kernel=case.kernel, width=case.width)
    module = module.to(device=device, memory_format=layout)  # type: ignore[call-overload]
    maps = torch.randn(case.batch_size, case.width, case.size, case.size, device=device)
    maps = maps.contiguous(memory_format=layout)
    dtype = {"float32": torch.float32, "bf16": torch.bfloat16}[case.precision]
    maps, gradient = maps.to(dtype), torch.randn_like(maps, dtype=dtype)

    def forward() -> None:
        with torch.no_grad(), torch.autocast(device, dtype, enabled=dtype != torch.float32):
            module(maps)

    def training() -> None:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            made = module(maps)
        made.backward(gradient)
        for tensor in (maps, *module.parameters()):
            tensor.grad = None

    if mode == "forward":
        return forward
    maps.requires_grad_()
    return training
