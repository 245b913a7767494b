"""Models for the digits with random numbers in all tensors, and the checkpoint of a run."""

from __future__ import annotations

import torch
from torch import nn

from mixer_lightning.api import create_model

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def digits_model(name: str = "mixer_digits", *, seed: int = 0, num_classes: int = 10) -> nn.Module:
    """A small model with random numbers in all of its tensors."""
    torch.manual_seed(seed)
    model = create_model(name, num_classes=num_classes)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.rand_like(tensor) if "running_var" in key else torch.randn_like(tensor)
                tensor.add_(0.1 * noise)
    return model.eval()


def assert_same_logits(model: nn.Module, other: nn.Module) -> None:
    with torch.no_grad():
        assert not torch.equal(model.head.weight, torch.zeros_like(model.head.weight))
        assert torch.equal(model.eval()(IMAGES), other.eval()(IMAGES))


def run_checkpoint(model: nn.Module, *, ema: nn.Module | None) -> dict[str, object]:
    """What a run of this project writes, so far as weights are concerned."""
    state = {f"model.{key}": tensor for key, tensor in model.state_dict().items()}
    node = {"_target_": f"mixer_lightning.models.convmixer.{type(model).__name__}", "activation": "gelu"}
    content = {"state_dict": state, "recipe": {"model": node, "image_size": 8}, "global_step": 7}
    content["classes"] = [str(digit) for digit in range(10)]
    if ema is not None:
        content["ema"] = dict(ema.named_parameters())
    return content
