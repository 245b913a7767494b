"""Steps of a model of ours or timm's, as the trainer and its evaluations make them, and the seconds that they take."""

from __future__ import annotations

import functools

import torch
from torch import nn

from mixer_lightning.api import create_model
from mixer_lightning.engine.device import Step
from mixer_lightning.engine.inference import Network, evaluating
from mixer_lightning.engine.machine import Machine
from mixer_lightning.kernels.activation_norm import Sequential
from mixer_lightning.kernels.depthwise import DepthwiseConv2d
from mixer_lightning.kernels.mlp import plain_mlp
from mixer_lightning.losses import softmax_cross_entropy
from mixer_lightning.models.mixer import Mlp
from mixer_lightning.models.presets import model_node
from mixer_lightning.optim.optimizers import adamw
from mixer_lightning.studies.cases import Case, Variant


def our_model(case: Case, *, kernel: bool, fused: bool) -> nn.Module:
    """Our model of a case, with or without kernels/depthwise.py and what makes one pass of several."""
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
    if not fused:
        for parent in reversed(list(model.modules())):  # from the inside out
            for name, child in list(parent.named_children()):
                if isinstance(child, Sequential):
                    setattr(parent, name, nn.Sequential(*child))
                elif isinstance(child, Mlp):
                    child.forward = functools.partial(  # type: ignore[method-assign]
                        plain_mlp, fc1=child.fc1, fc2=child.fc2, over_tokens=child.over_tokens
                    )
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


def compared_step(case: Case, variant: Variant, *, device: str) -> Step:
    """A function that makes one training step of a variant; on timm's side with torch's AdamW as it comes."""
    model, machine = _placed(case, variant, device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1) if variant.timm else None
    return training_step(
        model,
        machine,
        batch_size=case.batch_size,
        image_size=case.image_size,
        num_classes=case.num_classes,
        optimizer=optimizer,
    )


def compared_inference(case: Case, variant: Variant, *, device: str) -> Step:
    """A function that takes images through a variant as evaluations do."""
    model, machine = _placed(case, variant, device=device)
    step = inference_step(model, machine, batch_size=case.batch_size, image_size=case.image_size)

    def evaluate() -> None:
        with evaluating(model):
            step()

    return evaluate


def _placed(case: Case, variant: Variant, *, device: str) -> tuple[nn.Module, Machine]:
    torch.manual_seed(0)
    machine = Machine(
        accelerator="gpu" if device == "cuda" else "cpu",
        precision="bf16-mixed" if variant.bf16 else "32-true",
        channels_last=variant.channels_last,
        compile=variant.compile,
    )
    ours = functools.partial(our_model, case, kernel=variant.kernel, fused=variant.fused)
    return machine.place(timm_model(case) if variant.timm else ours()), machine


def training_step(
    model: nn.Module,
    machine: Machine,
    *,
    batch_size: int,
    image_size: int,
    num_classes: int,
    optimizer: torch.optim.Optimizer | None = None,
    clip_grad_norm: float | None = None,
) -> Step:
    """A function that makes one step of Classifier on random images: forward, loss in float32, backward, optimiser.

    Args:
        model: placed on the machine.
        machine: precision, layout and compilation.
        batch_size: images in a step.
        image_size: their side in pixels.
        num_classes: outputs of the model.
        optimizer: None: the AdamW of the recipes, which fuses where it can.
        clip_grad_norm: largest norm of the gradient; None: no clipping.
    """
    model.train()
    optimizer = optimizer or adamw(model, lr=1e-4, weight_decay=0.1)
    scaler = torch.amp.GradScaler(machine.device_type, enabled=machine.chosen_precision == "16-mixed")
    images = random_images(machine, model, batch_size=batch_size, image_size=image_size)
    labels = torch.randint(num_classes, (batch_size,), device=machine.device)
    targets = nn.functional.one_hot(labels, num_classes).float()
    forward = machine.compiled(model)

    def step() -> None:
        with machine.autocast():
            loss = softmax_cross_entropy(forward(images), targets)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if clip_grad_norm is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), clip_grad_norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


def inference_step(model: nn.Module, machine: Machine, *, batch_size: int, image_size: int) -> Step:
    """A function that takes random images through a placed model; to be called within `engine.inference.evaluating`."""
    network = Network(model, machine)
    images = random_images(machine, model, batch_size=batch_size, image_size=image_size)

    def step() -> None:
        network.logits(images)

    return step


def random_images(machine: Machine, model: nn.Module, *, batch_size: int, image_size: int) -> torch.Tensor:
    """Normalised images [B, 3, S, S] on the machine's device, in the memory format of a model."""
    images = torch.randn(batch_size, 3, image_size, image_size, device=machine.device)
    return images.contiguous(memory_format=machine.memory_format(model))
