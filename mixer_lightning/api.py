"""What a notebook needs: models by name, with their weights. Importing this module does not import torch.

>>> from mixer_lightning import create_model, list_models
>>> model = create_model("mixer_b16", num_classes=1000, checkpoint="Mixer-B_16.npz")
>>> features = model.forward_features(images)  # [B, S, C]
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from mixer_lightning.models.presets import build_model, list_models

if TYPE_CHECKING:
    from torch import nn

__all__ = ["create_model", "list_models"]


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    image_size: int | None = None,
    stochastic_depth: float = 0.0,
    head_bias: float = 0.0,
    checkpoint: str | Path | None = None,
) -> nn.Module:
    """A model of conf/model: normalised images [B, 3, image_size, image_size] -> logits [B, num_classes].

    Besides `forward` it has `forward_features`, `forward_head(features, pre_logits=False)`, `num_features` and the rest
    of models/protocol.py.

    Args:
        name: one of `list_models()`.
        num_classes: outputs of the head.
        image_size: side in pixels; None: what the model is made for (published.csv).
        stochastic_depth: probability with which training drops a branch of the last block, from 0 in the first.
        head_bias: initial bias of the head.
        checkpoint: weights to start from, in any form that `checkpoints.read` takes. With another number of classes the
            head is new, and a warning says so; a Mixer's may come from images of a whole fraction of `image_size`.

    Raises:
        ValueError: there is no such model, a number makes no sense, or the checkpoint holds another model.
        FileNotFoundError: there is no such checkpoint.
    """
    model = build_model(
        name,
        num_classes=num_classes,
        image_size=image_size,
        stochastic_depth=stochastic_depth,
        head_bias=head_bias,
    )
    if checkpoint is not None:
        from mixer_lightning.checkpoints.load import load

        report = load(model, checkpoint)
        if report.fresh:
            warnings.warn(str(report), stacklevel=2)
    return model
