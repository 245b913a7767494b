"""Receptive fields: of what the equations allow, and of the gradient (Luo et al., arXiv 1701.04128).

B images   F features   h side of the last map's grid   S side of the image in pixels
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mixer_lightning.models.convmixer import ConvMixer
from mixer_lightning.models.mixer import Mixer
from mixer_lightning.models.resmlp import ResMLP
from mixer_lightning.models.wide_resnet import WideResNet


def on_grid(model: nn.Module, features: Tensor) -> Tensor:
    """What `forward_features` gives, [B, F, h, h], [B, h, h, F] or [B, S, F], as [B, F, h, h].

    Class tokens, and others that stand for no patch, come first in timm's transformers and are left out.

    Raises:
        ValueError: the features lie on no square grid.
    """
    if features.ndim == 3:
        tokens = features[:, getattr(model, "num_prefix_tokens", 0) :]
        side = math.isqrt(tokens.shape[1])
        if side * side == tokens.shape[1]:
            return tokens.mT.reshape(len(tokens), -1, side, side)
    elif features.ndim == 4:
        _, first, second, third = features.shape
        if second == third:
            return features
        if first == second:
            return features.permute(0, 3, 1, 2)
    raise ValueError(
        f"features of shape {list(features.shape)} lie on no square grid: this study has nothing to ask"
    )


def gradient_map(
    model: nn.Module, images: Tensor, *, generator: torch.Generator, batch_size: int = 4
) -> Tensor:
    """How much each pixel matters to the feature at (h // 2, h // 2): float64 [S, S].

    The root of the mean over images [B, 3, S, S] of the sum over colours of squared gradients of sum_f s_f y_f, with
    random signs s. Over signs its mean square is the sum over all features of their squared gradients.
    """
    total = torch.zeros(images.shape[2:], dtype=torch.float64)
    for batch in torch.split(images, batch_size):
        x = batch.detach().clone().requires_grad_()
        features = on_grid(model, model.forward_features(x))  # type: ignore[operator]
        middle = features.shape[2] // 2
        unit = features[:, :, middle, middle]  # [B, F]
        signs = torch.randint(2, unit.shape, generator=generator) * 2 - 1
        (gradient,) = torch.autograd.grad((unit * signs.to(unit.device)).sum(), x)
        total += gradient.double().square().sum(dim=(0, 1)).cpu()
    return (total / len(images)).sqrt()


def batch_statistics(model: nn.Module, images: Tensor) -> None:
    """Gives every BatchNorm of a model in evaluation mode the statistics that it has on some images."""
    norms = [each for each in model.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over batches, here of one
        norm.train()
    with torch.no_grad():
        model.forward_features(images)  # type: ignore[operator]
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


# ------------------------------------------------------------------------------------- theoretical fields


class Layer(NamedTuple):
    """A convolution or pooling: side of the kernel, stride, zeros before the first pixel."""

    kernel: int
    stride: int
    padding: int


def field_of(layers: Sequence[Layer], position: int) -> tuple[int, int]:
    """(first, end): pixels first to end - 1 along each side are what a position after the layers depends on at most.

    The borders of the image are not regarded. From the last layer to the first, first <- first * stride - padding and
    last <- last * stride - padding + kernel - 1: the side is 1 + sum of (kernel - 1) * strides before.
    """
    first = last = position
    for layer in reversed(layers):
        first = first * layer.stride - layer.padding
        last = last * layer.stride - layer.padding + layer.kernel - 1
    return first, last + 1


def layers_of(model: nn.Module) -> list[Layer] | None:
    """The convolutions and poolings on the longest way through a network of these alone; None for another."""
    kernels: list[nn.Conv2d | nn.MaxPool2d]
    if isinstance(model, ConvMixer):
        kernels = [each for each in model.modules() if isinstance(each, nn.Conv2d)]
    elif isinstance(model, WideResNet) or _is_plain_resnet(model):
        kernels = [
            each
            for name, each in model.named_modules()
            if isinstance(each, nn.Conv2d | nn.MaxPool2d)
            and not {"downsample", "shortcut"} & {*name.split(".")}
        ]
    else:
        return None
    return [_layer(each) for each in kernels]


def _is_plain_resnet(model: nn.Module) -> bool:
    """Whether a model is timm's ResNet without gates, which look at all positions."""
    plain = {"conv1", "conv2", "conv3"}
    return type(model).__module__ == "timm.models.resnet" and all(
        name.rpartition(".")[2] in plain or "downsample" in name
        for name, each in model.named_modules()
        if isinstance(each, nn.Conv2d)
    )


def _layer(module: Any) -> Layer:
    kernel, stride, padding = (_side(value) for value in (module.kernel_size, module.stride, module.padding))
    return Layer(kernel, stride, (kernel - 1) // 2 if module.padding == "same" else padding)


def _side(value: Any) -> int:
    """A number that stands for two, or the first of two; 0 for a word."""
    if isinstance(value, str):
        return 0
    return int(value[0] if isinstance(value, tuple) else value)


#: Classes of timm of which one block alone looks at all positions.
GLOBAL = {"MlpMixer", "VisionTransformer"}


def sees_everything(model: nn.Module) -> bool:
    """Whether one block mixes all positions, so that every feature depends on the whole image."""
    return isinstance(model, Mixer | ResMLP) or type(model).__name__ in GLOBAL
