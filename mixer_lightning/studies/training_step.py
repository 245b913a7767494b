"""A training step of a model of ours or timm's, and the seconds that it takes."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from mixer_lightning.api import create_model
from mixer_lightning.kernels.depthwise import DepthwiseConv2d
from mixer_lightning.models.presets import model_node
from mixer_lightning.optim.optimizers import adamw
from mixer_lightning.studies.cases import Case, Variant


def our_model(case: Case, *, kernel: bool) -> nn.Module:
    """Our model of a case, its depthwise convolutions with or without the gradients of kernels/depthwise.py."""
    model = create_model(case.model, num_classes=case.num_classes, image_size=case.image_size)
    if case.num_blocks is not None:
        model.blocks = model.blocks[: case.num_blocks]  # type: ignore[index]
    for parent in list(model.modules()):
        for name, conv in parent.named_children():
            if isinstance(conv, nn.Conv2d) and conv.groups == conv.in_channels > 1:
                dim, size = conv.in_channels, conv.kernel_size[0]
                made = (
                    DepthwiseConv2d(dim, size)
                    if kernel
                    else nn.Conv2d(dim, dim, size, groups=dim, padding="same")
                )
                made.load_state_dict(conv.state_dict())
                setattr(parent, name, made)
    return model


def timm_model(case: Case) -> nn.Module:
    """timm's model with the numbers of conf/model."""
    from timm.models.convmixer import ConvMixer
    from timm.models.mlp_mixer import MlpMixer

    node = model_node(case.model)
    model: nn.Module
    if node["_target_"].endswith(".ConvMixer"):
        model = ConvMixer(
            dim=node["dim"],
            depth=case.num_blocks or node["depth"],
            kernel_size=node["kernel_size"],
            patch_size=node["patch_size"],
            num_classes=case.num_classes,
            act_layer={"gelu": nn.GELU, "relu": nn.ReLU}[node["activation"]],
        )
    else:
        hidden_dim = node["hidden_dim"]
        model = MlpMixer(
            img_size=case.image_size,
            patch_size=node["patch_size"],
            num_blocks=case.num_blocks or node["num_blocks"],
            embed_dim=hidden_dim,
            mlp_ratio=(node["tokens_mlp_dim"] / hidden_dim, node["channels_mlp_dim"] / hidden_dim),
            num_classes=case.num_classes,
        )
    return model


def training_step(case: Case, variant: Variant, *, device: str) -> Callable[[], None]:
    """A function that makes one training step."""
    torch.manual_seed(0)
    model = timm_model(case) if variant.timm else our_model(case, kernel=variant.kernel)
    layout = torch.channels_last if variant.channels_last else torch.contiguous_format
    model = model.to(device=device, memory_format=layout).train()  # type: ignore[call-overload]
    optimizer = (
        torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1)
        if variant.timm
        else adamw(model, lr=1e-4, weight_decay=0.1)
    )
    images = torch.randn(case.batch_size, 3, case.image_size, case.image_size, device=device)
    images = images.contiguous(memory_format=layout)
    labels = torch.randint(case.num_classes, (case.batch_size,), device=device)
    forward = torch.compile(model) if variant.compile else model

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=variant.bf16):
            logits = forward(images)
        F.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds(step: Callable[[], None], *, device: str, steps: int) -> float:
    """Seconds of one step, the mean of `steps` in a row; on a GPU between two of its events."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        start.record()
        for _ in range(steps):
            step()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1000 / steps
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - begin) / steps
