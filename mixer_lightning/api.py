"""What a notebook needs: models by name, and runs with their weights. Importing this module does not import torch.

>>> from mixer_lightning import create_model, list_models, load
>>> model = create_model("mixer_b16", num_classes=1000, checkpoint="Mixer-B_16.npz")
>>> features = model.forward_features(images)  # [B, S, C]
>>> model, classes, transform = load("runs/finetune/mixer_b16-folder-seed0")
>>> probabilities = model(transform(image)[None]).softmax(-1)  # a PIL image: [1, K], of `classes`
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mixer_lightning.models.presets import build_model, list_models

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn

__all__ = ["Loaded", "create_model", "list_models", "load"]


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    image_size: int | None = None,
    stochastic_depth: float = 0.0,
    head_bias: float = 0.0,
    overrides: Mapping[str, Any] | None = None,
    checkpoint: str | Path | None = None,
) -> nn.Module:
    """A model of conf/model: normalised images [B, 3, image_size, image_size] -> logits [B, num_classes].

    Besides `forward` it has `forward_features`, `forward_head(features, pre_logits=False)`, `num_features` and the rest
    of models/protocol.py.

    Args:
        name: one of `list_models()`.
        num_classes: outputs of the head; 0: no head, and `forward` gives features [B, num_features].
        image_size: side in pixels; None: what the model is made for (published.csv).
        stochastic_depth: probability with which training drops a branch of the last block, from 0 in the first.
        head_bias: initial bias of the head.
        overrides: other values for parameters of the model: {"num_blocks": 4, "hidden_dim": 256}.
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
        overrides=overrides,
    )
    if checkpoint is not None:
        from mixer_lightning.checkpoints.load import load

        report = load(model, checkpoint)
        if report.fresh:
            warnings.warn(str(report), stacklevel=2)
    return model


class Loaded(NamedTuple):
    """A model with its weights, in evaluation mode, and what it takes to use it.

    `classes` are the names of its outputs, None where the checkpoint names none; `transform` makes of a PIL image the
    normalised float32 tensor [3, S, S] that evaluation would show the model.
    """

    model: nn.Module
    classes: list[str] | None
    transform: Callable[[Image], Tensor]


def load(
    checkpoint: str | Path,
    *,
    model: str | None = None,
    image_size: int | None = None,
    num_classes: int | None = None,
) -> Loaded:
    """What a checkpoint holds: of a run directory the best weights, of other files what they tell (checkpoints.read).

    Args:
        checkpoint: a run directory, a file of weights, or timm:<name>.
        model: one of `list_models()`, where the file does not tell.
        image_size: side in pixels; None: the checkpoint's.
        num_classes: None: the checkpoint's; 0: without the head, for features.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is unreadable, or does not tell its model.
    """
    from mixer_lightning.checkpoints.read import read
    from mixer_lightning.checkpoints.restore import restore
    from mixer_lightning.data.eval_transform import EvalTransform
    from mixer_lightning.data.transforms import Augment

    found = read(checkpoint)
    if num_classes is None and found.model is not None and found.model.num_classes == 0:
        num_classes = 0
    restored = restore(found, model=model, image_size=image_size, num_classes=num_classes)
    if restored.report.fresh:
        warnings.warn(str(restored.report), stacklevel=2)
    transform = EvalTransform(Augment(**restored.preprocessing), restored.image_size)
    return Loaded(restored.model, restored.classes, transform)
